"""Gradients of metrics, and how accurate they are."""
