"""The feature cache: specs, keys, encodings, stores, reading, and the tools to trust it."""
