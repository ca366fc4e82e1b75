"""What a run says while it trains: metrics.jsonl, trackers and the progress line."""
