"""What a run eats: readers, packing, splits, packed sets, streams."""
