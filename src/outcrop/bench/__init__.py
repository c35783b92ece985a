"""Load on a running system, measured from outside. Reported as ratios of one run, never asserted."""
