"""Stage 1: run the teachers once and keep their features."""
