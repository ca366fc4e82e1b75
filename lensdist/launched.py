"""What a launcher tells a run, by environment variables: never set by users (torch-free).

Where it listens for the answer is `lensdist.outcome`'s.
"""

DEADLINE = "LENSDIST_DEADLINE"
"""Seconds since 1970 at which this job will be killed."""
PREFLIGHT = "LENSDIST_PREFLIGHT"
"""1 asks for the check of every process's device, and of the way between them."""
DEVICE = "LENSDIST_DEVICE"
"""`cuda` means that the launcher has asked for a GPU for each process."""
MIN_TFLOPS = "LENSDIST_MIN_TFLOPS"
"""Slower GPUs are bad; 1e12 operations a second in bfloat16."""
