"""Weights that others published: read without executing them, and put into our networks."""
