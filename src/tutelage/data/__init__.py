"""From files to batches: sources, tokens, the store, the split, packing, the loader."""
