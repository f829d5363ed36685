"""The demo's own models: three small teachers of different bias and a stem, trained on procedural scenes."""

from pipeline.demo_teachers.show import show_teachers
from pipeline.demo_teachers.stage import run_demo_teachers

__all__ = ["run_demo_teachers", "show_teachers"]
