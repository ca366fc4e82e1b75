"""What a step computes. Importing this package imports no torch; import the modules."""
