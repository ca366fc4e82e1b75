"""A trained model as files: written, described, loaded, and in other formats."""
