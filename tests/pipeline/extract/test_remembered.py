"""What a cache remembers of images and weights is made again where it is damaged."""

import json
from pathlib import Path

import pytest

from pipeline.cache.tools.verify import verify


@pytest.mark.parametrize("folder", ["index", "identities"])
def test_a_damaged_index_or_identity_is_made_again_and_no_features_are(run, shards, tmp_path, folder):
    cache = tmp_path / "cache"
    run(shards)
    files = sorted((cache / folder).iterdir())
    before = [file.read_bytes() for file in files]
    for file, data in zip(files, before, strict=True):
        file.write_bytes(data[:100] + b"?" + data[101:])
    assert not verify(str(cache)).sound
    assert run(shards).status == "nothing to do"
    assert [file.read_bytes() for file in files] == before
    assert verify(str(cache)).sound
    if folder == "index":
        assert any("damaged" in line and "reading the images again" in line for line in run.said)


def test_what_is_extracted_over_a_cache_below_can_be_read_without_it(
    run, shards, tmp_path, write_spec, teachers, fourth
):
    below, top = tmp_path / "below", tmp_path / "top"
    run(shards, cache=below)
    spec = write_spec(tmp_path / "four.yaml", teachers | fourth, format="webdataset")
    assert run(shards, spec=spec, cache=f"{top}:{below}").status == "complete"
    assert not any("Reading all images" in line for line in run.said)
    for place in (f"{top}:{below}", str(top)):
        assert verify(place, deep=True).sound


def test_the_report_in_the_cache_says_where_it_lies(run, shards):
    report = run(shards, limit=8)
    assert json.loads(Path(report.place).read_text())["place"] == report.place
