"""Checkpoints: our own (safetensors and JSON), the authors' layout in and out, and stage 1 carried into stage 2."""
