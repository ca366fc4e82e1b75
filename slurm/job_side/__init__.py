"""The modules that run inside a job: prologue, node checks, the phase's command, epilogue."""
