"""What a user would train with instead, as its authors' own examples do: for benchmarks only."""
