"""What became of a chain."""
