"""Distillation and task losses."""
