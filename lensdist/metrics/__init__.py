"""Scores, their intervals, figures and tables of results."""
