"""Scratch files of writers that died go with the next run, or with the end of this one."""

import os
import time

from pipeline.cache.folder import Cache
from pipeline.cache.lease import Leases
from pipeline.extract import columns as columns_module
from pipeline.extract import stage as module
from pipeline.storage import open_location


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_kept(run, shards, tmp_path):
    run(shards, limit=16)
    cache = Cache.open(str(tmp_path / "cache"))
    folder = tmp_path / "cache" / next(iter(cache.columns)).path
    dead = folder / "data" / f".x.{'a' * 32}.part"
    dead.write_bytes(b"half a block")
    os.utime(dead, (time.time() - 5, time.time() - 5))
    lease = Leases(open_location(folder / "leases")).acquire("v000-b000002")
    columns = [
        columns_module.WritableColumn.create_or_open(cache, cache.top.manifest(place)) for place in cache.columns
    ]
    columns_module.remove_leftovers(columns)
    assert dead.exists()
    lease.release()
    run(shards)
    assert not dead.exists()


def test_leftovers_of_workers_that_died_on_the_way_do_not_stay_in_a_finished_cache(run, shards, tmp_path, monkeypatch):
    def run_jobs(run, *arguments, **options):
        report = original(run, *arguments, **options)
        dead.append(next((tmp_path / "cache").glob("columns/*/*/data")) / f".x.{'a' * 32}.part")
        dead[0].write_bytes(b"half a block")
        os.utime(dead[0], (time.time() - 5, time.time() - 5))
        return report

    original, dead = module.run_jobs, []
    monkeypatch.setattr(module, "run_jobs", run_jobs)
    run(shards, limit=8)
    assert not dead[0].exists()
