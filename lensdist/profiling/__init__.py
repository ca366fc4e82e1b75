"""Where the time of a run's steps goes: its own loop, watched from outside."""
