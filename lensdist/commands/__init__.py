"""The sub-commands of `lensdist`, one per file (torch-free at import)."""
