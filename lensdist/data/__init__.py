"""Data of a run: packed sets, splits, sources of batches, scaling and augmentation."""
