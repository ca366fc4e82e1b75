"""`lensdist bench speed`: a run's speed, compared with the machine's peak and with rivals."""
