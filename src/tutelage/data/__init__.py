"""Data: sources, tokens, store, packing, loader."""
