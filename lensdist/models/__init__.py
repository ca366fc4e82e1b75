"""The networks. Importing this package does not import torch; import the modules."""
