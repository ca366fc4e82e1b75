"""A training step on paper: how much, how large, how long (torch-free)."""

from lensdist.estimate.network import forward_flops, parameters, train_bytes, train_flops

__all__ = ["forward_flops", "parameters", "train_bytes", "train_flops"]
