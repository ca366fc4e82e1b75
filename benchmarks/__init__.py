"""Benchmarks of speed: ratios to a user's alternatives, timed in turns within one run."""
