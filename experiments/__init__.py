"""Benchmarks that are results rather than speeds. Importing this package imports no torch."""
