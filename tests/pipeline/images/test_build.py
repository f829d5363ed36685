import hashlib
import tarfile
import threading

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.images import scan
from pipeline.images.build import build_index
from pipeline.images.source import ShardError
from pipeline.storage import StorageError, remote


@pytest.fixture
def fault(tmp_path, tar):
    """`fault(members, ...)`: what indexing shards with these members raises."""

    def indexed(*shards, form=tarfile.USTAR_FORMAT):
        for number, members in enumerate(shards):
            data = members if isinstance(members, bytes) else tar(members, form)
            (tmp_path / f"bad-{number}.tar").write_bytes(data)
        with pytest.raises(ShardError) as failure:
            build_index(str(tmp_path))
        assert all("\n" not in problem for problem in failure.value.problems)
        assert str(failure.value).startswith(failure.value.problems[0])
        return failure.value.problems

    return indexed


def same(one, other):
    return one.data_key() == other.data_key() and all(
        (getattr(one.columns, name) == getattr(other.columns, name)).all()
        for name in ("shard", "suffix", "offset", "size", "label", "hashes", "order")
    )


def test_every_sample_has_its_key_label_place_and_digest(shards, image):
    index = build_index(str(shards))
    assert index.keys() == [f"s{number:02d}" for number in range(12)]
    assert index.labels.tolist() == [number % 5 for number in range(12)]
    assert index.shards == ("train-000.tar", "train-001.tar", "train-002.tar")
    for number in range(12):
        assert index.digest(number) == hashlib.sha256(image(number)).digest()
        place = index.byte_range(number)
        data = (shards / place.file).read_bytes()
        assert data[place.offset : place.offset + place.size] == image(number)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_changes_nothing(shards, threads):
    assert same(build_index(str(shards), threads=threads), build_index(str(shards), threads=3))


def test_remote_shards_give_the_same_index(shards):
    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe_file(f"/built/{path.name}", path.read_bytes())
    assert same(build_index("memory://built/train-{000..002}.tar"), build_index(str(shards)))


def test_a_connection_that_breaks_in_between_is_taken_up_again(shards, monkeypatch):
    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe_file(f"/broken/{path.name}", path.read_bytes())
    whole, failures = MemoryFileSystem.cat_file, [ConnectionResetError(104, "reset"), TimeoutError()]

    def breaking(self, path, *args, **kwargs):
        if failures:
            raise failures.pop()
        return whole(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", breaking)
    monkeypatch.setattr(remote, "DELAYS", (0.0, 0.0))
    assert same(build_index("memory://broken", threads=1), build_index(str(shards)))
    assert not failures
    failures += [ConnectionResetError(104, "reset")] * 9
    with pytest.raises(StorageError, match=r"train-000.tar: the store cannot be reached"):
        build_index("memory://broken", threads=1)


def test_members_belong_to_samples_as_webdataset_has_it(tmp_path, tar, image):
    members = [
        ("README", b"x"),
        ("._a.jpg", b"x"),
        ("sub/a.cls", b"7\n"),
        ("sub/a.seg.png", b"a map, not the image"),
        ("sub/a.JPEG", image(1)),
        ("sub/a.json", b"{}"),
        ("b.png", image(2)),
        ("c.jpg", b""),
    ]
    (tmp_path / "one.tar").write_bytes(tar(members))
    index = build_index(str(tmp_path / "one.tar"))
    assert index.keys() == ["sub/a", "b", "c"]
    assert index.labels.tolist() == [7, -1, -1]
    assert index.digest(0) == hashlib.sha256(image(1)).digest()
    assert index.byte_range(2).size == 0
    assert [index.suffixes[number] for number in index.columns.suffix] == [".JPEG", ".png", ".jpg"]
    assert sum(index.byte_range(row).size for row in range(3)) == len(image(1)) + len(image(2))


def test_a_key_twice_in_a_shard_is_reported(fault):
    assert fault([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")]) == (
        "bad-0.tar: a.jpg: duplicate key 'a', this shard has its .jpg already",
    )


def test_a_key_in_two_shards_is_reported_with_both(fault):
    assert fault([("a.jpg", b"1"), ("b.jpg", b"2")], [("c.jpg", b"3")], [("b.png", b"1")]) == (
        "bad-2.tar: b: duplicate key, shard bad-0.tar has it already",
    )


def test_a_sample_without_an_image_is_reported(fault):
    (problem,) = fault([("a.jpg", b"1"), ("b.cls", b"2"), ("b.json", b"2")])
    assert problem.startswith("bad-0.tar: b.cls: sample without an image (one of .jpg, .jpeg,")


def test_a_second_image_for_a_key_is_reported_with_a_way_out(fault):
    assert fault([("a.jpg", b"1"), ("a.png", b"2")]) == (
        "bad-0.tar: a.png: second image for key 'a' beside a.jpg; name it a.NAME.png",
    )


@pytest.mark.parametrize("text", [b"", b"cat", b"-1", b"1.5", b"9" * 30, b"1 2"])
def test_a_label_that_is_no_number_is_reported(fault, text):
    (problem,) = fault([("a.jpg", b"1"), ("a.cls", text)])
    assert problem.startswith("bad-0.tar: a.cls: label b'")


def test_a_truncated_shard_is_reported_alone_and_the_others_are_still_read(fault, tar):
    cut = tar([("a.jpg", b"1" * 900), ("b.jpg", b"2" * 900)])[:2200]
    assert fault(cut, [("c.jpg", b"1"), ("d.cls", b"1")]) == (
        "bad-0.tar: b.jpg: promises 900 bytes, the shard ends after 152: it is cut",
        "bad-1.tar: d.cls: sample without an image (one of "
        ".jpg, .jpeg, .jpe, .png, .webp, .bmp, .gif, .tif, .tiff, .ppm, .pgm)",
    )


def test_links_are_reported_with_shard_and_member(fault, tar):
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    assert fault(tar([("a.jpg", b"1")], extra=[link])) == (
        "bad-0.tar: b.jpg: is a link to /etc/passwd; links are refused, pack the file itself",
    )


def test_shards_without_a_single_sample_are_refused(fault):
    (problem,) = fault([("README", b"x")], [])
    assert "hold no samples" in problem


def test_a_scan_of_the_wrong_data_stops_after_some_problems(tmp_path, tar):
    for number in range(60):
        (tmp_path / f"{number:03d}.tar").write_bytes(tar([(f"{number}.txt", b"x")]))
    with pytest.raises(ShardError, match=r"\(and \d+ more like it\)$") as failure:
        build_index(str(tmp_path), threads=1)
    assert 20 <= len(failure.value.problems) < 40


def test_a_folder_of_images_is_indexed_by_path(tmp_path, image):
    for number, name in enumerate(["b.JPEG", "a.png", "c.d.webp"]):
        (tmp_path / name).write_bytes(image(number))
    index = build_index(str(tmp_path))
    assert index.keys() == ["a", "b", "c.d"]
    assert index.labels.tolist() == [-1, -1, -1]
    assert index.digest(0) == hashlib.sha256(image(1)).digest()


def test_class_folders_are_labelled_by_their_order(tmp_path, image):
    for number, name in enumerate(["n02/b.jpg", "n01/z.jpg", "n02/a.jpg"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(number))
    index = build_index(str(tmp_path))
    assert index.keys() == ["n01/z", "n02/a", "n02/b"]
    assert index.labels.tolist() == [0, 1, 1]
    assert index.shards == ("n01", "n02")


def test_two_files_of_one_name_in_a_folder_are_reported(tmp_path, image):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(image())
    with pytest.raises(ShardError, match=r"^\.: a: duplicate key"):
        build_index(str(tmp_path))


def test_progress_comes_one_at_a_time_and_ends_complete(shards, monkeypatch):
    monkeypatch.setattr("pipeline.images.build._SECONDS_BETWEEN_REPORTS", -1)
    seen, busy = [], threading.Lock()

    def report(progress):
        assert busy.acquire(blocking=False)
        seen.append(progress)
        busy.release()

    build_index(str(shards), progress=report)
    assert [each.samples for each in seen] == sorted(each.samples for each in seen)
    assert [each.bytes for each in seen] == sorted(each.bytes for each in seen)
    last = seen[-1]
    assert (last.samples, last.shards_done, last.shards) == (12, 3, 3)
    assert last.bytes <= last.bytes_total == sum(path.stat().st_size for path in shards.iterdir())


def test_an_error_of_the_caller_stops_the_scan(shards):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(str(shards), progress=interrupt)


def test_a_shard_that_shrinks_while_it_is_read_is_reported(shards, monkeypatch):
    whole = build_index(str(shards)).stamps[1].bytes
    opened = scan.open_shard

    def shrinking(root, shard, size):
        if shard == "train-001.tar":
            (shards / shard).write_bytes((shards / shard).read_bytes()[: whole // 2])
        return opened(root, shard, size)

    monkeypatch.setattr("pipeline.images.scan.open_shard", shrinking)
    with pytest.raises(ShardError, match=r"train-001.tar: .*cut"):
        build_index(str(shards))
