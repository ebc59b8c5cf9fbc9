"""Stock pipelines of diffusers: their own call with gradients, and their network as a denoiser."""
