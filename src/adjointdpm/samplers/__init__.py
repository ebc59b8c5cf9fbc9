"""Samplers: noise and a conditioning in, an image out, differentiable throughout."""
