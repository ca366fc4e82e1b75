"""Networks. Importing this package imports no torch; import the modules."""
