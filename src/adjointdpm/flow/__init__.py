"""The probability flow: noise schedules, denoisers, time grids, and what a sampler needs of a model."""
