"""Data: images joined with features, the downstream data sets, demo data."""
