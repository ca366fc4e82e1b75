"""The training loop, and what it needs at each step: stages, state, checkpoints, validation."""
