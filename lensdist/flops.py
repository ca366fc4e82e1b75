"""What a network computes: see `lensdist.estimate`, its home (torch-free)."""

from lensdist.estimate.network import forward_flops, train_flops

__all__ = ["forward_flops", "train_flops"]
