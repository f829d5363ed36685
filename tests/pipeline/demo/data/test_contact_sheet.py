"""The contact sheet shows what it says."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.demo.data.contact_sheet import COLUMNS, TITLES, contact_sheet, panels
from pipeline.demo.render.picture import RenderedScene


def test_a_row_has_a_picture_of_every_task(scenes: list[RenderedScene]) -> None:
    row = panels(scenes[0], "a scene")
    assert len(row.panels) == len(COLUMNS) == len(TITLES)
    for picture in row.panels:
        assert picture.dtype == np.uint8
        assert picture.shape == scenes[0].rgb.shape


def test_a_sheet_grows_with_its_rows(scenes: list[RenderedScene]) -> None:
    rows = [panels(scene, str(number)) for number, scene in enumerate(scenes[:3])]
    one, three = (contact_sheet(rows[:n], {"dog": scenes[0].rgb}, "title") for n in (1, 3))
    assert one.width == three.width
    assert one.height < three.height


def test_the_written_sheet_is_a_picture_with_much_in_it(demo: Path) -> None:
    sheet = np.array(Image.open(demo / "contact_sheet.png"))
    assert sheet.shape[2] == 3
    assert len(np.unique(sheet[::4, ::4].reshape(-1, 3), axis=0)) > 1000
