"""The studio: a local page on which a person watches a gradient work."""
