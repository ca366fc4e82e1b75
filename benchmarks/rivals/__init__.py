"""Rivals: other ways to train, as in their authors' examples; for benchmarks only."""
