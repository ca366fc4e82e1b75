"""How fast a run trains here, beside what the machine could do and what else one would use."""
