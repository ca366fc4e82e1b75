"""The processes of a run: accelerate's context, gradients, parallel strategies, precision."""
