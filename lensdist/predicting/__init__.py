"""`lensdist predict`: a trained model applied to people's own files."""
