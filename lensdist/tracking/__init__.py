"""Record and show the numbers of a run: metrics.jsonl, trackers, progress."""
