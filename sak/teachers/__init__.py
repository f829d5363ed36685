"""Frozen teachers: a registry, and one module per library."""
