"""The harness of all benchmarks: stopwatch, turns behind a gate, hardware, report."""
