"""The teacher cache: soft labels on disk, tiny, unbiased, verified."""
