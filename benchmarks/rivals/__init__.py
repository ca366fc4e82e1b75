"""Rivals: how a user would train instead, as in their authors' examples; for benchmarks only."""
