"""Files: images, pages, checkpoints, and the files that diffusers and transformers read and write."""
