"""The student: stem (TAS), adapter paths (TSAP), routers (MoR), heads."""
