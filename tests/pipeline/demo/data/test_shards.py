"""Shards: what webdataset and tarfile make of them."""

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.data.folder import DemoManifest
from pipeline.demo.data.shards import plan_pictures, plan_shards
from pipeline.demo.things.classes import SUBJECTS


@pytest.fixture
def shards(demo: Path) -> list[Path]:
    """The demo's shards, in order."""
    return sorted((demo / "imagenet").glob("train-*.tar"))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_webdataset_decodes_every_sample(shards: list[Path], small: dict[str, int]) -> None:
    data = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False).decode("rgb8")
    samples = list(data)
    assert len(samples) == small["images"]
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    for sample in samples:
        assert sample["jpg"].shape == (small["size"], small["size"], 3)
        assert sample["jpg"].dtype == np.uint8
        assert 0 <= sample["cls"] < len(SUBJECTS)
        assert sample["__key__"].startswith(f"n{99000000 + sample['cls']:08d}_")


def test_a_sample_is_a_jpg_and_a_cls_one_after_the_other(shards: list[Path]) -> None:
    for path in shards:
        with tarfile.open(path) as tar:
            names = tar.getnames()
            stamps = {(member.mtime, member.uid, member.gid, member.mode) for member in tar.getmembers()}
        assert [name.partition(".")[2] for name in names] == ["jpg", "cls"] * (len(names) // 2)
        assert stamps == {(0, 0, 0, 0o644)}


def test_shards_are_uneven_and_counted_in_the_manifest(shards: list[Path], manifest: DemoManifest) -> None:
    counts = {}
    for path in shards:
        with tarfile.open(path) as tar:
            counts[path.name] = len(tar.getnames()) // 2
    assert counts == manifest.shards
    assert len(set(counts.values())) > 1


def test_classes_are_counted_in_the_manifest(shards: list[Path], manifest: DemoManifest) -> None:
    seen: Counter[str] = Counter()
    for path in shards:
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".cls"):
                    member = tar.extractfile(name)
                    assert member is not None
                    seen[manifest.class_names[int(member.read())]] += 1
    assert dict(seen) == manifest.splits["imagenet"]["train"].classes


@given(st.integers(1, 5000), st.integers(0, 50))
def test_any_number_of_images_is_spread_over_shards_that_differ(images: int, seed: int) -> None:
    sizes = plan_shards(images, seed)
    assert sum(sizes) == images
    assert min(sizes) > 0
    if images > 2:
        assert len(set(sizes)) > 1


@given(st.integers(1, 400), st.integers(0, 50))
def test_classes_are_as_even_as_can_be_and_keys_differ(images: int, seed: int) -> None:
    pictures = plan_pictures(images, seed)
    counts = Counter(picture.label for picture in pictures)
    assert max(counts.values()) - (min(counts.values()) if images >= len(SUBJECTS) else 0) <= 1
    assert len({picture.key for picture in pictures}) == images
