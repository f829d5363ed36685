"""Procedural demo data: scenes with people in them, and everything one can ask about every pixel.

A scene is composed from a seed, rendered by casting rays, and written in the layouts of the real data sets. Nothing
here needs torch.
"""

from pipeline.data.demo.compose import render_scene
from pipeline.data.demo.manifest import DemoManifest, Split, is_demo_data
from pipeline.data.demo.render import RenderedScene
from pipeline.data.demo.write import write_demo_data

__all__ = ["DemoManifest", "RenderedScene", "Split", "is_demo_data", "render_scene", "write_demo_data"]
