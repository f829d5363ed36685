"""Leases on blocks."""

import json
import multiprocessing
import time
from threading import Thread

import pytest

from pipeline.cache.lease import LeaseLostError, Leases, Owner, kept_alive
from pipeline.storage import open_location

NAME = "v000-b000003"


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    if request.param == "local":
        return open_location(tmp_path / "leases")
    return open_location(f"memory://leases-{tmp_path.name}-{time.time_ns()}")


def elsewhere(token: str) -> Owner:
    return Owner("another machine", 7, 7, token)


def test_of_two_writers_one_gets_the_block(place):
    one, two = Leases(place, owner=elsewhere("a")), Leases(place, owner=elsewhere("b"))
    assert one.acquire(NAME)
    assert two.acquire(NAME) is None
    assert two.acquire("v000-b000004")
    assert one.held() == [NAME, "v000-b000004"]


def test_a_released_lease_is_free_and_leaves_no_file(place):
    with Leases(place, owner=elsewhere("a")).acquire(NAME):
        assert place.list()
    assert place.list() == []
    assert Leases(place, owner=elsewhere("b")).acquire(NAME)


def test_an_expired_lease_is_taken_over_and_its_first_owner_may_not_publish(place):
    first = Leases(place, owner=elsewhere("a"), seconds=0.05).acquire(NAME)
    time.sleep(0.06)
    second = Leases(place, owner=elsewhere("b")).acquire(NAME)
    with pytest.raises(LeaseLostError, match="went to another writer"):
        first.confirm()
    first.release()
    second.confirm()
    second.release()
    assert place.list() == []


def test_an_owner_frozen_past_its_time_may_not_publish_even_if_nobody_took_over(place):
    lease = Leases(place, owner=elsewhere("a"), seconds=0.05).acquire(NAME)
    time.sleep(0.06)
    with pytest.raises(LeaseLostError):
        lease.confirm()


def test_a_lost_lease_stays_lost_after_the_taker_is_done(place):
    first = Leases(place, owner=elsewhere("a"), seconds=0.05).acquire(NAME)
    time.sleep(0.06)
    Leases(place, owner=elsewhere("b")).acquire(NAME).release()
    with pytest.raises(LeaseLostError):
        first.confirm()
    assert place.list() == []


def test_a_keeper_renews_what_would_expire(place):
    lease = Leases(place, owner=elsewhere("a"), seconds=0.2).acquire(NAME)
    with kept_alive(lease):
        time.sleep(0.4)
        assert Leases(place, owner=elsewhere("b")).acquire(NAME) is None
        lease.confirm()


def test_a_damaged_lease_file_blocks_nobody(place):
    place.write_bytes(f"{NAME}.1.json", b'{"host": "x", "expi')
    assert Leases(place, owner=elsewhere("b")).acquire(NAME).generation == 2


def _hold(path, ready):
    Leases(open_location(path)).acquire(NAME)
    ready.set()
    time.sleep(60)


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    assert Leases(open_location(tmp_path)).acquire(NAME) is None
    process.kill()
    process.join()
    assert Leases(open_location(tmp_path)).acquire(NAME).generation == 2


def test_a_process_number_used_again_is_another_owner():
    here = Owner.here()
    assert not here.is_dead()
    assert Owner(here.host, here.process, here.started - 1, here.token).is_dead()
    assert not Owner("another machine", 2**22, 1, "x").is_dead()


def test_many_writers_share_blocks_without_doing_one_twice(place):
    taken: list[str] = []

    def work(token):
        leases = Leases(place, owner=elsewhere(token))
        taken.extend(name for number in range(12) if leases.acquire(name := f"b{number}"))

    threads = [Thread(target=work, args=(str(number),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"b{number}" for number in range(12))
    assert all(json.loads(place.read_bytes(file))["expires"] > time.time() for file in place.list())
