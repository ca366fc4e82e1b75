"""Benchmarks of results rather than speeds. Importing this package does not import torch."""
