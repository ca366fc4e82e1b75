"""The state of a chain: status, logs, and the page of `why`."""
