import os

import fsspec
import pytest

from pipeline.images.source import ShardError, find_images, is_image
from pipeline.storage import StorageError
from sak.errors import SakError

NAMES = ("train-000.tar", "train-001.tar", "train-002.tar")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", NAMES),
        ("/", NAMES),
        ("/train-{000..002}.tar", NAMES),
        ("/train-00{0..2}.tar", NAMES),
        ("/train-{002,000}.tar", ("train-000.tar", "train-002.tar")),
        ("/train-{00{1,2},000}.tar", NAMES),
        ("/*.tar", NAMES),
        ("/train-00[12].tar", NAMES[1:]),
        ("/train-00?.tar", NAMES),
        ("/{train,train}-000.tar", NAMES[:1]),
        ("/train-001.tar", NAMES[1:2]),
    ],
)
def test_shards_are_found_by_folder_pattern_or_name_and_sorted(shards, pattern, found):
    source = find_images(f"{shards}{pattern}")
    assert (source.kind, source.shards) == ("tars", found)
    assert [stamp.bytes for stamp in source.stamps] == [(shards / name).stat().st_size for name in found]
    assert [stamp.modified for stamp in source.stamps] == [(shards / name).stat().st_mtime for name in found]
    assert source.data == f"{shards}{pattern}".rstrip("/")


def test_a_pattern_may_span_folders(shards):
    source = find_images(f"{shards.parent}/{{shards,shards}}/train-00{{0..1}}.tar")
    assert source.shards == ("shards/train-000.tar", "shards/train-001.tar")
    assert find_images(f"{shards.parent}/*/train-000.tar").shards == ("shards/train-000.tar",)


def test_remote_shards_are_found_in_the_same_ways(shards):
    files = fsspec.filesystem("memory")
    for name in NAMES:
        files.pipe_file(f"/found/{name}", (shards / name).read_bytes())
    for data in ("memory://found", "memory://found/train-{000..002}.tar", "memory://found/*.tar"):
        source = find_images(data)
        assert source.shards == NAMES
        assert [stamp.bytes for stamp in source.stamps] == [(shards / name).stat().st_size for name in NAMES]
    with pytest.raises(ShardError, match=r"train-003.tar: no such shard"):
        find_images("memory://found/train-{000..007}.tar")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("/train-{000..003}.tar", r"train-003.tar: no such shard"),
        ("/val-*.tar", r"val-\*.tar: no file matches"),
        ("/train-{000..002.tar", "braces do not match"),
        ("/train-{2..0}.tar", "must rise"),
        ("/train-{0..9999999}.tar", "at most 1000000 names"),
        ("/absent", "absent: not there; check the path"),
        ("/absent.tar", "absent.tar: no such shard"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(shards, pattern, message):
    with pytest.raises(SakError, match=message) as failure:
        find_images(f"{shards}{pattern}")
    assert "\n" not in str(failure.value)


def test_a_pattern_in_a_bucket_name_is_refused():
    with pytest.raises(ShardError, match="bucket must be spelled out"):
        find_images("s3://bucket-{a,b}/train.tar")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(shards):
    odd = shards.rename(shards.parent / "shards [1]{a}")
    assert find_images(str(odd)).shards == NAMES


def test_a_folder_of_images_is_taken_in_the_order_of_names(tmp_path, image):
    for name in ("b.JPEG", "a.png", "c.d.webp"):
        (tmp_path / name).write_bytes(image())
    for other in ("notes.txt", ".hidden.jpg", "jpg"):
        (tmp_path / other).write_text("x")
    source = find_images(str(tmp_path))
    assert (source.kind, source.shards) == ("images", ("",))
    assert [entry.path for entry in source.files[0]] == ["a.png", "b.JPEG", "c.d.webp"]


def test_class_folders_are_taken_in_the_order_of_names_through_links_too(tmp_path, image):
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "x.jpg").write_bytes(image())
    data = tmp_path / "data"
    (data / "n02").mkdir(parents=True)
    (data / "n02" / "b.jpg").write_bytes(image())
    (data / ".ipynb_checkpoints").mkdir()
    (data / ".ipynb_checkpoints" / "b.jpg").write_bytes(image())
    (data / "n01").symlink_to(real)
    source = find_images(str(data))
    assert (source.kind, source.shards) == ("classes", ("n01", "n02"))
    assert [entry.path for each in source.files for entry in each] == ["n01/x.jpg", "n02/b.jpg"]


def test_mixtures_are_refused_with_what_to_do(tmp_path, shards, image):
    (shards / "a.jpg").write_bytes(image())
    with pytest.raises(ShardError, match="both tars and images; give a pattern"):
        find_images(str(shards))
    mixed = tmp_path / "mixed"
    (mixed / "n01").mkdir(parents=True)
    (mixed / "a.jpg").write_bytes(image())
    (mixed / "n01" / "a.jpg").write_bytes(image())
    with pytest.raises(ShardError, match="beside and inside"):
        find_images(str(mixed))
    (mixed / "a.jpg").unlink()
    with pytest.raises(ShardError, match="two folders down, in mixed/n01"):
        find_images(str(tmp_path))


def test_who_names_the_folder_above_the_shards_is_told_where_they_lie(tmp_path, shards, image):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "a.jpg").write_bytes(image())
    (tmp_path / "sheet.png").write_bytes(image())
    with pytest.raises(ShardError, match=f"give one kind, or {shards}, where shards are"):
        find_images(str(shards.parent))


def test_a_file_that_is_no_shard_is_said(tmp_path, image):
    (tmp_path / "a.jpg").write_bytes(image())
    with pytest.raises(ShardError, match=r"a\.jpg: a file that is no \.tar; give a tar shard, a folder"):
        find_images(str(tmp_path / "a.jpg"))


def test_a_link_to_nothing_is_said(tmp_path):
    (tmp_path / "a.jpg").symlink_to("nowhere")
    with pytest.raises(StorageError, match=r"a.jpg: not there"):
        find_images(str(tmp_path))


def test_a_folder_that_may_not_be_read_is_an_error_not_an_empty_class(tmp_path, image, monkeypatch):
    for name in ("n01", "n02"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(image())
    listed = os.scandir

    def refuse(place):
        if str(place).endswith("n02"):
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="n02: permission denied"):
        find_images(str(tmp_path))


def test_extensions_count_in_any_case_and_hidden_names_do_not():
    assert all(map(is_image, ["a.jpg", "a.JPEG", "a.b.Png", "x.webp", "x.tif"]))
    assert not any(map(is_image, ["a.txt", ".jpg", "._a.jpg", "jpg", "a.jpg.txt", "a.cls"]))
