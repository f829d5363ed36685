"""Studies: a grid of runs over caches that exist."""
