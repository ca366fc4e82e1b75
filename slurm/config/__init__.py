"""The user's input: chains, clusters, the command line, sweeps."""
