"""A plan to its jobs, and jobs to another try."""
