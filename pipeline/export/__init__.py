"""The student for use elsewhere."""
