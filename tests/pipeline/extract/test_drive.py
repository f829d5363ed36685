"""The main process's side: what it tells while it waits."""

from types import SimpleNamespace

import pytest

from pipeline.extract import dispatch as drive


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(drive.time, "monotonic", lambda: now.seconds)
    return now


def test_a_run_that_all_workers_left_says_once_that_it_waits(clock):
    workers, said = {"a": {}}, []
    cluster = SimpleNamespace(client=SimpleNamespace(scheduler_info=lambda n_workers: {"workers": workers}))
    watch = drive._WorkerWatch(cluster, said.append)

    def pass_by(seconds):
        for _ in range(seconds):
            clock.seconds += 1
            watch.look()

    pass_by(60)
    assert said == []
    workers.clear()
    pass_by(8)
    assert said == []  # a worker that is started again is not told of
    pass_by(60)
    assert len(said) == 1
    assert said[0].startswith("All workers are gone; waiting for others")
    workers["b"] = {}
    pass_by(10)
    workers.clear()
    pass_by(60)
    assert len(said) == 2
