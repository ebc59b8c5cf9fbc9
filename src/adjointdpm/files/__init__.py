"""Files: images, pages, checkpoints, and what diffusers and transformers read and write."""
