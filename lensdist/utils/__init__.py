"""Small parts that all others use: errors, files, logging, random numbers."""
