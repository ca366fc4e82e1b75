"""Helpers that every package uses: errors, files, logging, random numbers."""
