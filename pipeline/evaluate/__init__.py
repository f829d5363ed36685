"""Metrics of fine-tuned runs, and of boundary predictions made anywhere."""
