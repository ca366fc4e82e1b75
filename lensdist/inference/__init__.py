"""`lensdist predict`: a model applied to image files."""
