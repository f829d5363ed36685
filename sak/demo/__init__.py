"""The demo's own weights, shipped with the package: three small teachers and a stem, trained on procedural scenes."""

from sak.demo.shipped import DEMO_MODELS, DemoModel, ShippedFile, shipped_file

__all__ = ["DEMO_MODELS", "DemoModel", "ShippedFile", "shipped_file"]
