"""What every benchmark shares: a stopwatch, turns behind a gate, the machine, the report."""
