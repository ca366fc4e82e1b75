"""Stand-ins for what a machine of tests lacks, or what takes minutes."""
