"""How a run runs: the loop, exact resume, checkpoints, collectives, stopping."""
