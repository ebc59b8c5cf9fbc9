"""Small real models and pipelines, built on the spot: the one registry of the tests."""
