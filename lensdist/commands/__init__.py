"""One file a sub-command of `lensdist`; importing them imports no torch."""
