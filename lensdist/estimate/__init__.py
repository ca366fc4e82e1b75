"""Estimate a training step without running it: its operations, memory and time (torch-free)."""

from lensdist.estimate.network import train_bytes, train_flops

__all__ = ["train_bytes", "train_flops"]
