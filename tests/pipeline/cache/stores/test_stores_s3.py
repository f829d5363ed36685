"""A column on an S3 store: written by uploads, read through staged blocks."""

import gc

import numpy as np
import pytest

from pipeline.cache.stores.base import ArrayLayout, ColumnLayout, DamageError
from pipeline.cache.stores.files import Staging
from pipeline.cache.stores.tar_store import TarStore, tar_samples
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.storage import open_location

LAYOUT = ColumnLayout(
    (ArrayLayout("l3/values", "int8", (70, 64), 0), ArrayLayout("l3/scales", "float16", (70,), float("nan"))), 7, 4
)


@pytest.fixture
def bucket(monkeypatch):
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    # Instances remember the endpoint they were first made with.
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    threaded = server.ThreadedMotoServer(port=0, verbose=False)
    threaded.start()
    host, port = threaded.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="columns")
    yield open_location("s3://columns/cache")
    threaded.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zarr", "webdataset"])
def test_a_column_on_s3_is_written_checked_grown_and_read(bucket, tmp_path, kind):
    location, staging = bucket / kind, Staging(tmp_path)
    zarr = kind == "zarr"
    store = ZarrStore(location, LAYOUT, staging=staging) if zarr else TarStore(location, LAYOUT, str, staging=staging)
    rng = np.random.default_rng(0)
    data = {array.name: rng.integers(-9, 9, (7, *array.shape)).astype(array.dtype) for array in LAYOUT.arrays}
    store.prepare(1)
    store.prepare(2)
    records = []
    for block in range(2):
        samples = np.asarray(LAYOUT.block_samples(block))
        with store.open_block(1, block) as writer:
            writer.append(samples % 4, {name: values[samples] for name, values in data.items()})
            records.append(writer.finish())
        assert store.check(1, block, records[-1], deep=True) == ()
    assert store.check_metadata(2) == ()
    samples = np.array([6, 0, 3, 3])
    for name, values in store.read(1, samples, list(data)).items():
        np.testing.assert_array_equal(values, data[name][samples])
    if not zarr:
        read = np.stack([sample["l3/values"] for sample in tar_samples(location, LAYOUT, 1, range(2))])
        np.testing.assert_array_equal(read, data["l3/values"])
    store.forget()
    location.delete(records[0][0].path)
    with pytest.raises(DamageError, match=r"s3://.*not there"):
        store.read(1, [0], list(data))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # zarr leaves its session to the collector
def test_zarr_opens_a_column_on_s3(bucket, writer):
    column = writer(place=str(bucket)).write("dino").column.fresh()
    group = column.zarr_group()
    expected = column.store.read(0, range(20), ["l2/values"])["l2/values"]
    np.testing.assert_array_equal(group["l2/values"][0], expected)
    del group
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    gc.collect()
