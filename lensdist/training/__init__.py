"""The training loop, and all that it needs at each step: stages, state, checkpoints, validation."""
