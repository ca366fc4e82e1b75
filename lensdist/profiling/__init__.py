"""Profile the steps of a run: its own loop, timed from outside."""
