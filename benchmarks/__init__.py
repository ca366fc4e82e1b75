"""Speeds: ratios against what a user would pick instead, timed in turns within one run."""
