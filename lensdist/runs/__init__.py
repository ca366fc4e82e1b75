"""A run from its configuration to its `COMPLETE.json`: its folder, its checks, resuming, finishing."""
