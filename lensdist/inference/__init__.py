"""The work of `lensdist predict`: a model is applied to image files."""
