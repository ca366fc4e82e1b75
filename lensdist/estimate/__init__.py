"""A training step on paper: how much, how large, how long (torch-free)."""

from lensdist.estimate.network import train_bytes, train_flops

__all__ = ["train_bytes", "train_flops"]
