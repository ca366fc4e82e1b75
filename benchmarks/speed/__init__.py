"""`lensdist bench speed`: a run's speed, beside what the machine could do and beside rivals."""
