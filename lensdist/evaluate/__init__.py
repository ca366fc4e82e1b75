"""What a finished model is worth: metrics, figures and tables."""
