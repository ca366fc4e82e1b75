"""The plan of a chain: checked settings, what exists already, times, and batch scripts."""
