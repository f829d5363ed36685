"""Shards and caches behind URLs: a real S3 server on the loopback that fails now and then."""

import itertools
import threading
import time

import pytest

from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.tools.verify import verify
from pipeline.storage import open_location

# botocore and moto use what Python has deprecated; nothing of that is ours to change. Requests that time out, which is
# what is tested, leave sockets to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*", "ignore::DeprecationWarning:moto.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Faults:
    """Passes requests on to the server, but fails every `error`-th with a 500 and lets every `hang`-th time out."""

    def __init__(self, application):
        self.application = application
        self.error = self.hang = 0
        self.last = ""  # with the first request for such a path the server is gone
        self.failed = self.hung = 0
        self._count = itertools.count(1)

    def __call__(self, environment, start):
        number = next(self._count)
        if self.last and self.last in environment["PATH_INFO"]:
            self.error = 1
        if self.hang and number % self.hang == 0:
            self.hung += 1
            time.sleep(2.5)
        elif self.error and number % self.error == 0:
            self.failed += 1
            start("500 Internal Server Error", [("Content-Type", "application/xml"), ("Content-Length", "0")])
            return [b""]
        return self.application(environment, start)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3
    import fsspec
    from werkzeug.serving import make_server

    faults = Faults(server.DomainDispatcherApplication(server.create_backend_app))
    threaded = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = threading.Thread(target=threaded.serve_forever, daemon=True)
    thread.start()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{threaded.server_port}",
    }.items():
        patch.setenv(name, value)
    options = {"config_kwargs": {"read_timeout": 1, "connect_timeout": 5, "retries": {"max_attempts": 1}}}
    patch.setitem(fsspec.config.conf, "s3", options)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield faults
    threaded.shutdown()
    thread.join()
    patch.undo()


def _upload(shards):
    remote = open_location("s3://bucket/shards")
    for name in open_location(shards).list():
        remote.write_bytes(name, open_location(shards).read_bytes(name))


def test_remote_shards_and_a_remote_cache_survive_a_server_that_fails(run, shards, s3, tmp_path, bytes_of):
    _upload(shards)
    s3.error, s3.hang = 9, 201
    report = run("s3://bucket/shards", cache="s3://bucket/cache", teachers=["clip"])
    assert report.status == "complete"
    assert s3.failed > 5
    assert s3.hung >= 1
    s3.error = s3.hang = 0
    assert verify("s3://bucket/cache", deep=True).sound
    run(shards, cache=tmp_path / "local", teachers=["clip"])
    remote = open_location("s3://bucket/cache")
    for name, data in bytes_of(tmp_path / "local").items():
        if "/records/" not in name:
            assert remote.read_bytes(name) == data, name
    assert len(FeatureCache.open("s3://bucket/cache")) == 40
    assert run("s3://bucket/shards", cache="s3://bucket/cache", teachers=["clip"]).status == "nothing to do"


def test_a_store_that_is_lost_stops_with_one_line_and_half_written_blocks_do_not_count(run, shards, s3, monkeypatch):
    import s3fs

    import pipeline.storage.remote
    from sak.errors import SakError

    started = run(shards, cache="s3://bucket/lost", limit=16, teachers=["clip"])
    assert started.images == 16
    with monkeypatch.context() as lost:
        lost.setattr(pipeline.storage.remote, "DELAYS", ())
        lost.setattr(s3fs.S3FileSystem, "retries", 1)
        s3.last = "views/v000-b000001"
        with pytest.raises(SakError) as error:
            run(shards, cache="s3://bucket/lost", teachers=["clip"], lease_seconds=4)
    assert "\n" not in str(error.value)
    s3.error, s3.last = 0, ""
    # The lease could not be given back: it has to expire first.
    assert run(shards, cache="s3://bucket/lost", teachers=["clip"]).status == "complete"
    assert verify("s3://bucket/lost", deep=True).sound
