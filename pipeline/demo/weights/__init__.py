"""The demo's own weights, shipped with the package: three small teachers and a stem, trained on procedural scenes."""
