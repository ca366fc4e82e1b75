"""Small parts that every other part uses: errors, files, logging, random numbers (torch-free but for tensors)."""
