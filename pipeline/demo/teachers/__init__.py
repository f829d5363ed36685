"""The demo's own models: three small teachers of different bias and a stem, trained on procedural scenes."""
