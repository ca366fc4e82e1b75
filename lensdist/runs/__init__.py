"""A run, from its configuration to its `COMPLETE.json`: folder, checks, resuming, finishing."""
