import numpy as np
import pytest

from pipeline.demo.teachers.pool import CHUNK, PoolSpec, ScenePool, chunk_name
from pipeline.demo.things.classes import SUBJECTS

SPEC = PoolSpec(seed=0, scenes=2 * CHUNK, size=64)


def blocks(rng, spec):
    """A record of coloured squares: cheap, and its labels are its colours."""
    record = np.zeros((), spec.record)
    size = spec.size
    record["instances"] = 1
    record["semantic"] = 2
    record["rgb"] = 90
    for number in range(2, 5):
        top, left = rng.integers(0, size - 24, 2)
        place = (slice(top, top + 24), slice(left, left + 24))
        record["instances"][place], record["semantic"][place] = number, 18 + number
        record["rgb"][place] = rng.integers(0, 255, 3)
    record["subject"] = rng.integers(-1, len(SUBJECTS))
    return record


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder with a pool that nothing had to render."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    (root / SPEC.key).mkdir()
    for number in range(SPEC.scenes // CHUNK):
        np.save(root / SPEC.key / chunk_name(number), np.stack([blocks(rng, SPEC) for _ in range(CHUNK)]))
    return root


@pytest.fixture
def pool(scenes):
    return ScenePool.open(scenes, SPEC)
