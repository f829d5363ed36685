"""Stage 2: train the student against the cache."""
