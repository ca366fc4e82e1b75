"""Published weights: they are read without executing code, and loaded into our networks."""
