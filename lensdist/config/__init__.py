"""Configuration files: see `loader`. Imports no torch, so that mistakes are told in no time."""

from lensdist.config.loader import dump, json_schema, load, raw, save

__all__ = ["dump", "json_schema", "load", "raw", "save"]
