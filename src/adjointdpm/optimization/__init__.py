"""One optimization loop for all tasks; it knows no sampler."""
