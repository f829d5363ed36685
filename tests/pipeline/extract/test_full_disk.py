"""A disk that fills up while blocks are written: one clear line, nothing half-written counts, the next run goes on."""

import subprocess

import pytest

from pipeline.cache.tools.verify import verify
from pipeline.storage import StorageError
from sak.errors import SakError


def _mount(folder, size, *options) -> None:
    arguments = ["-o", ",".join((f"size={size}", *options)), "tmpfs", str(folder)]
    done = subprocess.run(["mount", "-t", "tmpfs", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    _mount(folder, "700k")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_with_one_line_and_with_more_room_the_next_run_completes(
    run, shards, small_disk, tmp_path, bytes_of
):
    cache = small_disk / "cache"
    with pytest.raises(StorageError, match=r"to write and .* free; make room"):
        run(shards, cache=cache, views=4)
    with pytest.raises(SakError, match=r"no space left; free some or choose another place") as error:
        run(shards, cache=cache, views=4, ignore_space=True)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.part"))
    _mount(small_disk, "20m", "remount")
    assert run(shards, cache=cache, views=4).status == "complete"
    assert verify(str(cache), deep=True).sound
    run(shards, cache=tmp_path / "whole", views=4)
    assert bytes_of(cache) == bytes_of(tmp_path / "whole")
