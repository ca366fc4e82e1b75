"""Trained models in other formats and places. Importing this package imports no torch."""
