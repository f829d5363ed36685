"""The parts of `pipeline.ablate`: studies, the jobs they need, running them, and their tables."""
