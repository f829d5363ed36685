"""Locations: one contract, local and remote."""

import errno
import os
import pickle
import stat
import subprocess
import tempfile
import threading

import pytest

from pipeline.storage import MissingFileError, StorageError, open_location, remote


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    if request.param == "local":
        yield open_location(tmp_path / "cache")
    else:
        location = open_location(f"memory://{tmp_path.name}-{request.node.name}".replace("[", "-").replace("]", ""))
        yield location
        location.delete_tree("")


def test_what_was_written_is_read_whole_and_by_ranges(place):
    place.write_bytes("columns/a/x.bin", b"0123456789")
    assert place.read_bytes("columns/a/x.bin") == b"0123456789"
    assert place.read_ranges("columns/a/x.bin", [(8, 2), (0, 1)]) == (b"89", b"0")
    assert place.read_range("columns/a/x.bin", 3, 4) == b"3456"
    assert place.size("columns/a/x.bin") == 10
    assert place.exists("columns/a/x.bin")
    assert place.exists("columns")
    assert not place.exists("columns/b")


def test_writing_again_replaces_the_whole_file(place):
    place.write_bytes("x", b"a long first version")
    place.write_bytes("x", b"short")
    assert place.read_bytes("x") == b"short"


def test_a_range_past_the_end_is_an_error_not_fewer_bytes(place):
    place.write_bytes("x", b"0123")
    with pytest.raises(StorageError, match="ends before byte 6"):
        place.read_range("x", 2, 4)


def test_a_missing_file_is_named(place):
    for call in (lambda: place.read_bytes("no/such"), lambda: place.size("no/such")):
        with pytest.raises(MissingFileError, match="no/such: not there"):
            call()


def test_listing_and_walking_see_files_and_folders_but_no_scratch(place):
    place.write_bytes("b/2", b"22")
    place.write_bytes("b/1", b"1")
    place.write_bytes("a", b"333")
    if (folder := place.local_path("b")) is not None:
        (folder / ".1.0f.part").write_bytes(b"half")
    assert place.list() == ["a", "b"]
    assert place.list("b") == ["1", "2"]
    assert place.list("nowhere") == []
    assert [(each.path, each.bytes) for each in place.walk()] == [("a", 3), ("b/1", 1), ("b/2", 2)]
    assert [each.path for each in place.walk("b")] == ["b/1", "b/2"]
    assert all(each.modified is None or each.modified > 1e9 for each in place.walk())


def test_joined_locations_are_folders_of_their_own(place):
    (place / "columns" / "a").write_bytes("x", b"1")
    assert place.read_bytes("columns/a/x") == b"1"
    assert (place / "columns/a").name == "a"
    assert place / "columns" / "a" == place / "columns/a"


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a/", "x\0y"])
def test_no_path_leaves_the_folder(place, path):
    with pytest.raises(StorageError, match="relative path inside"):
        place.write_bytes(path, b"")
    with pytest.raises(StorageError, match="relative path inside"):
        place / path


def test_exactly_one_of_many_creates_exclusively_and_the_file_is_its_own(place):
    won: list[int] = []

    def create(number):
        if place.create_exclusive("lease", b"owner %d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 or place.is_remote  # the in-memory file system only checks first
    assert place.read_bytes("lease") in [b"owner %d" % number for number in won]
    assert not place.create_exclusive("lease", b"late")
    assert place.list() == ["lease"]


def test_publish_moves_a_scratch_file_and_leaves_none_behind(place):
    scratch = place.scratch("deep/block")
    scratch.write_bytes(b"block")
    assert place.list("deep") == []
    place.publish(scratch, "deep/block")
    assert place.read_bytes("deep/block") == b"block"
    assert not scratch.exists()


def test_deleting_is_idempotent(place):
    place.write_bytes("a/x", b"")
    place.write_bytes("a/y", b"")
    place.delete("a/x")
    place.delete("a/x")
    assert place.list("a") == ["y"]
    place.delete_tree("a")
    place.delete_tree("a")
    assert not place.exists("a/y")


def test_staging_gives_a_local_file_and_a_new_version_a_new_copy(place, tmp_path):
    place.write_bytes("b/x.bin", b"one")
    first = place.stage("b/x.bin", tmp_path / "staged")
    assert first.read_bytes() == b"one"
    assert place.stage("b/x.bin", tmp_path / "staged") == first
    place.write_bytes("b/x.bin", b"second")
    assert place.stage("b/x.bin", tmp_path / "staged").read_bytes() == b"second"
    if place.is_remote:
        assert not list((tmp_path / "staged").glob(".*"))


def test_a_location_crosses_pickle(place):
    place.write_bytes("x", b"1")
    again = pickle.loads(pickle.dumps(place))
    assert again == place
    assert again.read_bytes("x") == b"1"


def test_urls_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_location("cache").url == str(tmp_path / "cache")
    assert open_location(f"file://{tmp_path}/c") == open_location(tmp_path / "c")
    assert open_location("memory://bucket/c/").url == "memory://bucket/c"
    assert open_location("memory://bucket/c").is_remote
    assert not open_location("c").is_remote
    assert open_location("c").local_path("x") == tmp_path / "c" / "x"
    assert open_location("memory://b").local_path("x") is None
    with pytest.raises(StorageError, match="empty path"):
        open_location("")


def test_local_files_follow_the_umask_and_reading_makes_nothing(tmp_path):
    before = os.umask(0o002)
    try:
        open_location(tmp_path / "shared").write_bytes("deep/x", b"1")
        open_location(tmp_path / "shared").create_exclusive("deep/y", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared/deep/x").stat().st_mode) == 0o664
    assert stat.S_IMODE((tmp_path / "shared/deep/y").stat().st_mode) == 0o664
    assert stat.S_IMODE((tmp_path / "shared/deep").stat().st_mode) == 0o775
    absent = open_location(tmp_path / "absent")
    assert absent.list() == []
    assert not absent.exists()
    assert list(absent.walk()) == []
    assert (absent.free_space() or 0) > 0
    assert not (tmp_path / "absent").exists()


def test_a_file_in_the_place_of_a_folder_is_told_as_that(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(StorageError, match="cache/x: a file lies where a folder is wanted; move it away"):
        open_location(tmp_path / "cache").write_bytes("x", b"")


@pytest.mark.parametrize(
    ("number", "line"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "quota"), (errno.EACCES, "permission denied"),
     (errno.EROFS, "read-only"), (errno.ESTALE, "cannot be reached"), (errno.EIO, "cannot be reached")],
)  # fmt: skip
def test_a_failing_disk_is_one_line_with_place_and_remedy_and_leaves_the_old_file(tmp_path, monkeypatch, number, line):
    place = open_location(tmp_path)
    place.write_bytes("x", b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    for write in (place.write_bytes, place.create_exclusive):
        with pytest.raises(StorageError, match=line) as caught:
            write("x" if write == place.write_bytes else "y", b"new")
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert place.read_bytes("x") == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_scratch_of_dead_writers_is_removed_by_age(tmp_path):
    place = open_location(tmp_path)
    old, new = place.scratch("a/x"), place.scratch("a/x")
    old.write_bytes(b"12345")
    new.write_bytes(b"1")
    os.utime(old, (1, 1))
    assert place.remove_scratch(older_than=3600) == 5
    assert new.exists()
    assert not old.exists()


class Flaky:
    """A file system whose first calls fail."""

    def __init__(self, errors):
        self.errors = errors

    def cat_file(self, where):
        if self.errors:
            raise self.errors.pop(0)
        return b"there"


@pytest.fixture
def flaky(monkeypatch):
    def make(*errors):
        files = Flaky(list(errors))
        monkeypatch.setattr(remote, "url_to_fs", lambda url, **_: (files, url))
        monkeypatch.setattr(remote, "DELAYS", (0.0, 0.0))
        return open_location("s3://bucket/c")

    return make


def test_scratch_of_killed_writers_to_remote_stores_is_removed_and_that_of_others_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {"dead": f".sak-{ended.pid}-a.1.part", "living": f".sak-{os.getpid()}-a.1.part"}
    names |= {"new": f".sak-{ended.pid}-a.2.part", "strange": ".sak-x-a.1.part", "other": ".other.part"}
    for what, name in names.items():
        (tmp_path / name).write_bytes(b"block")
        if what != "new":
            os.utime(tmp_path / name, (1, 1))
    scratch = open_location("memory://b").scratch("deep/block")
    assert scratch.parent == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == set(names.values()) - {names["dead"]}


def test_passing_errors_of_a_remote_store_are_tried_again(flaky):
    assert flaky(TimeoutError("read"), OSError(errno.EBUSY, "SlowDown")).read_bytes("x") == b"there"


def test_a_remote_store_that_stays_away_is_one_line(flaky):
    with pytest.raises(StorageError, match=r"s3://bucket/c/x: the store cannot be reached.*run again"):
        flaky(*[ConnectionResetError("reset")] * 3).read_bytes("x")


def test_a_refusal_is_not_tried_again(flaky):
    with pytest.raises(StorageError, match="permission denied"):
        flaky(PermissionError("AccessDenied")).read_bytes("x")


def test_an_uninstalled_remote_library_names_the_extra():
    with pytest.raises(StorageError, match=r"sak\[remote\]"):
        open_location("abfs://container/c").read_bytes("x")


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    # Instances remember the endpoint they were first made with.
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    threaded = server.ThreadedMotoServer(port=0, verbose=False)
    threaded.start()
    host, port = threaded.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield open_location("s3://bucket/cache")
    threaded.stop()
    patch.undo()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*", "ignore::DeprecationWarning:moto.*")
def test_an_s3_store_keeps_the_same_contract(s3, tmp_path):
    s3.write_bytes("a/x", b"0123456789")
    assert s3.read_ranges("a/x", [(8, 2), (0, 1)]) == (b"89", b"0")
    assert s3.create_exclusive("a/lease", b"first")
    assert not s3.create_exclusive("a/lease", b"second")
    assert s3.create_exclusive("a/lease", b"first"), "a repeated upload of one's own bytes counts as created"
    scratch = s3.scratch("a/block")
    scratch.write_bytes(b"block")
    s3.publish(scratch, "a/block")
    assert s3.list("a") == ["block", "lease", "x"]
    assert [(each.path, each.bytes) for each in s3.walk()] == [("a/block", 5), ("a/lease", 5), ("a/x", 10)]
    assert s3.stage("a/block", tmp_path).read_bytes() == b"block"
    with pytest.raises(MissingFileError):
        s3.read_bytes("a/none")
    with pytest.raises(StorageError, match="ends before"):
        s3.read_range("a/x", 8, 4)
    s3.delete("a/x")
    s3.delete_tree("a")
    assert s3.list("a") == []
    assert not s3.exists("a")
