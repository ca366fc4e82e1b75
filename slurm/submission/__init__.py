"""Turn a plan into jobs, send them to SLURM or run them here, and resume or cancel them."""
