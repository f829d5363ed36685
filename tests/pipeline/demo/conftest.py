"""One small folder of demo data, and a few scenes, for all tests here."""

from pathlib import Path

import pytest

from pipeline.demo.data.folder import DemoManifest
from pipeline.demo.data.write import write_demo_data
from pipeline.demo.render.picture import RenderedScene
from pipeline.demo.scenes.compose import render_scene

SMALL = {"images": 18, "scenes": 5, "size": 48, "seed": 7}


@pytest.fixture(scope="session")
def small() -> dict[str, int]:
    """The settings `demo` was written with."""
    return SMALL


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo, written in this process."""
    out = tmp_path_factory.mktemp("demo") / "data"
    write_demo_data(out, **SMALL, processes=1)
    return out


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> DemoManifest:
    """What writing returns for the settings of `demo`."""
    return write_demo_data(tmp_path_factory.mktemp("again") / "data", **SMALL, processes=1)


@pytest.fixture(scope="session")
def scenes() -> list[RenderedScene]:
    """Six scenes at 96 pixels, rooms and outdoors, in a stream that the demo does not use."""
    return [render_scene(11, 96, index=index, setting="indoors" if index % 2 else "outdoors") for index in range(6)]
