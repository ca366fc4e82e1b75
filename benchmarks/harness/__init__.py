"""The harness of all benchmarks: stopwatch, turns after a gate, hardware, report."""
