"""Configuration files: see `loader`. Torch-free, so that mistakes are reported at once."""

from lensdist.config.loader import dump, load, raw, save

__all__ = ["dump", "load", "raw", "save"]
