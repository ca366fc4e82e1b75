"""Turns a plan into jobs, sends them to SLURM or runs them here, and resumes or cancels them."""
