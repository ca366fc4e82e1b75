"""What is asked for: chains, clusters, the command line, sweeps."""
