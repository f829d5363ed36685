"""Writing as a whole: the same bytes again, refusals, and nothing left behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.data import folder, write
from pipeline.demo.data.workers import scene_workers
from pipeline.demo.data.write import SHEET_BYTES, write_demo_data
from sak.errors import SakError, UsageError

TINY = {"images": 3, "scenes": 2, "size": 32, "processes": 1}


def digest(folder: Path) -> dict[str, str]:
    """Every file's digest, by its path in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    demo: Path, small: dict[str, int], tmp_path: Path
) -> None:
    write_demo_data(tmp_path / "again", **small, processes=1)
    assert digest(tmp_path / "again") == digest(demo)
    write_demo_data(tmp_path / "other", **{**small, "seed": 8}, processes=1)
    other = digest(tmp_path / "other")
    alike = {name for name, value in digest(demo).items() if other.get(name) == value}
    assert all(name.endswith((".json", ".txt")) for name in alike)


@pytest.mark.slow
@pytest.mark.parametrize("many", [2, 3])
def test_the_number_of_processes_changes_no_byte(demo: Path, small: dict[str, int], tmp_path: Path, many: int) -> None:
    write_demo_data(tmp_path / "data", **small, processes=many)
    assert digest(tmp_path / "data") == digest(demo)


def test_progress_counts_every_image_and_scene(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_demo_data(tmp_path / "data", **TINY, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 7) for done in range(1, 8)]


def test_the_manifest_on_disk_says_what_there_is(demo: Path, small: dict[str, int]) -> None:
    manifest = json.loads((demo / "manifest.json").read_text())
    assert {name: manifest[name] for name in small} == small
    assert manifest["licence"] == "CC0-1.0"
    assert sum(manifest["shards"].values()) == small["images"]
    for name in ("pascal-context", "nyud"):
        assert sum(split["images"] for split in manifest["splits"][name].values()) == small["scenes"]
        assert (demo / manifest["folders"][name]).is_dir()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 0}, "--images is 0"),
        ({"images": -4}, "--images is -4"),
        ({"images": 10**12}, "--images is 1000000000000"),
        ({"scenes": 1}, "--scenes is 1"),
        ({"size": -128}, "--size is -128"),
        ({"size": 8}, "--size is 8"),
        ({"size": 10**6}, "--size is 1000000"),
        ({"seed": -1}, "--seed is -1"),
        ({"processes": 0}, "--processes is 0"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_made(
    tmp_path: Path, wrong: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        write_demo_data(tmp_path / "data", **{**TINY, **wrong})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        write_demo_data(tmp_path, **TINY)
    with pytest.raises(UsageError, match="other than demo data"):
        write_demo_data(tmp_path, **TINY, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        write_demo_data(tmp_path / "data", **TINY, overwrite=True)


def test_an_empty_folder_is_used_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_demo_data(tmp_path / "empty", **TINY)
    write_demo_data(tmp_path / "a/b/data", **TINY)
    assert digest(tmp_path / "empty") == digest(tmp_path / "a/b/data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "data"
    write_demo_data(out, **TINY)
    (out / "stale.txt").write_text("stale")
    write_demo_data(out, **{**TINY, "seed": 5}, overwrite=True)
    assert not (out / "stale.txt").exists()
    assert json.loads((out / "manifest.json").read_text())["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def failing(code: int) -> Any:
    """A job that the file system refuses."""

    def run(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return run


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "not allowed"), (errno.EIO, "cannot write")],
)
def test_when_the_disk_refuses_nothing_is_left_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    out = tmp_path / "data"
    write_demo_data(out, **TINY)
    before = digest(out)
    monkeypatch.setattr(write.nyud, "write_scene", failing(code))
    with pytest.raises(SakError, match=message) as caught:
        write_demo_data(out, **{**TINY, "seed": 5}, overwrite=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(SakError, match=message):
        write_demo_data(tmp_path / "new/data", **TINY)
    assert digest(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_data(tmp_path / "data", **TINY, progress=stop)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    (tmp_path / ".data.abcdefgh.partial").mkdir()
    (tmp_path / ".data.abcdefgh.old").mkdir()
    with folder.whole_folder(tmp_path / "data", room=0, overwrite=False) as scratch:
        (scratch / "kept").write_text("")
        write_demo_data(tmp_path / "data", **TINY)
        assert (scratch / "kept").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([scratch.name, "data"])
        (tmp_path / "data").rename(tmp_path / "first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "first"]


def test_too_little_space_is_told_before_anything_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(SakError, match="may take"):
        write_demo_data(tmp_path / "data", **TINY)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SakError) as caught:
        write_demo_data(tmp_path / "file" / "data", **TINY)
    assert "\n" not in str(caught.value)


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the folder you are in"):
        write_demo_data(Path(), **TINY)


def test_the_folder_above_the_one_you_are_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    with pytest.raises(UsageError, match="or holds the folder you are in"):
        write_demo_data(tmp_path / "a", **TINY, overwrite=True)


def test_a_mount_point_is_refused_before_anything_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(UsageError, match="name a folder in it"):
        write_demo_data(tmp_path, **TINY)


def test_a_url_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="looks like a URL"):
        write_demo_data(Path("s3://bucket/demo"), **TINY)
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_folder_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("data")
    write_demo_data(tmp_path / "link", **TINY)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "data/manifest.json").exists()


def test_a_link_to_itself_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SakError) as caught:
        write_demo_data(tmp_path / "loop", **TINY)
    assert "\n" not in str(caught.value)


def test_the_room_asked_for_is_enough_and_not_far_too_much(demo: Path, small: dict[str, int]) -> None:
    files = sum(path.stat().st_size for path in demo.rglob("*") if path.is_file() and path.suffix != ".json")
    sheet = (demo / "contact_sheet.png").stat().st_size
    room = (small["images"] + 2 * small["scenes"]) * (3 * small["size"] ** 2 + 16_000)
    assert room / 20 < files - sheet < room
    assert SHEET_BYTES / 20 < sheet < SHEET_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.3, 1.5, 6.0])
def test_ctrl_c_at_any_moment_is_one_line_and_leaves_nothing(tmp_path: Path, after: float) -> None:
    script = "import cli, signal; signal.signal(signal.SIGINT, signal.default_int_handler); cli.main()"
    command = [sys.executable, "-c", script, "demo-data", "data", "--images", "2000", "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(after)
        os.killpg(run.pid, signal.SIGINT)
        _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert [line for line in told.splitlines() if " of 2,096 images" not in line] == ["sak-cli: interrupted"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_that_dies_is_told_in_one_line() -> None:
    with (
        pytest.raises(SakError, match="died"),
        scene_workers(2, 4, None) as workers,
    ):
        list(workers.in_order(os._exit, [1, 1, 1, 1]))


def test_nothing_here_imports_torch() -> None:
    code = "import sys, pipeline.demo.data.write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
