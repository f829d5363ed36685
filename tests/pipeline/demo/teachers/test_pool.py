import numpy as np
import pytest

from pipeline.demo.data import shards, write
from pipeline.demo.data.write import write_demo_data
from pipeline.demo.scenes import compose
from pipeline.demo.scenes.compose import generator
from pipeline.demo.teachers.captions import LENGTH, REGIONS, WORD_ID, WORDS, caption, regions_of, things_seen, words_of
from pipeline.demo.teachers.pool import PoolSpec, ScenePool, chunk_name, render_chunk, render_pool, subject_of
from pipeline.demo.things.classes import CLASS_ID, SUBJECTS
from sak.errors import SakError, UsageError

SCENES = 8


@pytest.fixture(scope="module", autouse=True)
def _small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.demo.teachers.pool.CHUNK", SCENES)
        yield


@pytest.fixture(scope="module")
def tiny(_small_chunks):
    return PoolSpec(seed=3, scenes=SCENES, size=32)


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny):
    root = tmp_path_factory.mktemp("pool")
    render_pool(root, tiny, processes=1)
    return root


def test_no_scene_to_train_on_is_ever_one_of_the_demo_data(tmp_path, tiny, monkeypatch):
    drawn = []

    def recording(stream, seed, index=0, purpose="scene"):
        drawn.append(stream)
        return generator(stream, seed, index, purpose)

    for module in (compose, write, shards):
        monkeypatch.setattr(module, "generator", recording)
    write_demo_data(tmp_path / "demo", images=2, scenes=2, size=32, processes=1)
    assert set(drawn) == {"imagenet", "pascal-context", "nyud"}
    drawn.clear()
    render_chunk(tmp_path, tiny, 0)
    assert set(drawn) == {"training"}


def test_a_pool_goes_on_where_it_stopped_and_comes_out_the_same(root, tiny, tmp_path):
    whole = (root / tiny.key / chunk_name(0)).read_bytes()
    (tmp_path / tiny.key).mkdir()
    (tmp_path / tiny.key / f".{chunk_name(0)}.half.part").write_bytes(whole[:100])
    render_pool(tmp_path, tiny, processes=1)
    assert (tmp_path / tiny.key / chunk_name(0)).read_bytes() == whole
    before = (root / tiny.key / chunk_name(0)).stat().st_mtime_ns
    render_pool(root, tiny, processes=1)
    assert (root / tiny.key / chunk_name(0)).stat().st_mtime_ns == before


def test_two_scenes_of_three_show_a_subject_and_every_subject_comes_equally_often(root, tiny):
    subjects = [subject_of(index) for index in range(3 * len(SUBJECTS))]
    assert subjects.count(None) == len(SUBJECTS)
    assert {subjects.count(name) for name in SUBJECTS} == {2}
    pool = ScenePool.open(root, tiny)
    named = [None if number < 0 else SUBJECTS[number] for number in pool.subjects()]
    assert named == [subject_of(index) for index in range(len(pool))]


def test_a_damaged_chunk_is_refused(root, tiny, tmp_path):
    (tmp_path / tiny.key).mkdir()
    target = tmp_path / tiny.key / chunk_name(0)
    target.write_bytes((root / tiny.key / chunk_name(0)).read_bytes()[:5000])
    with pytest.raises(SakError, match=r"chunk-0000\.npy is no chunk of a scene pool"):
        ScenePool.open(tmp_path, tiny)
    target.write_bytes(b"")
    with pytest.raises(SakError, match=r"chunk-0000\.npy is no chunk of a scene pool"):
        ScenePool.open(tmp_path, tiny)
    np.save(target, np.zeros(3))
    with pytest.raises(SakError, match="another kind of pool"):
        ScenePool.open(tmp_path, tiny)
    with pytest.raises(UsageError, match="multiple of 8"):
        PoolSpec(scenes=9)


def test_captions_of_real_scenes_are_made_of_known_words_and_name_what_is_there(root, tiny):
    pool = ScenePool.open(root, tiny)
    rng = np.random.default_rng(0)
    for index in range(SCENES):
        record = pool[index]
        text = caption(record["semantic"], record["instances"], int(record["kind"]), rng)
        numbers = words_of(text)
        assert numbers.shape == (LENGTH,)
        assert (numbers > 0).sum() == len(text.split())
        names = {thing.name for thing in things_seen(record["semantic"], record["instances"])}
        assert {word for word in text.split() if word in CLASS_ID} <= names


def test_a_caption_tells_left_from_right():
    semantic = np.full((32, 32), CLASS_ID["wall"])
    instances = np.ones((32, 32), dtype=int)
    semantic[20:30, 2:10], instances[20:30, 2:10] = CLASS_ID["dog"], 2
    left = caption(semantic, instances, 0, np.random.default_rng(0))
    right = caption(semantic[:, ::-1], instances[:, ::-1], 0, np.random.default_rng(0))
    assert "a small dog at the left bottom" in left
    assert "a small dog at the right bottom" in right
    assert WORD_ID["left"] in words_of(left)
    assert WORD_ID["left"] not in words_of(right)


def test_things_and_parts_get_a_phrase_and_the_pixels_that_show_them():
    semantic = np.full((32, 32), CLASS_ID["wall"])
    instances, parts = np.ones((32, 32), dtype=int), np.zeros((32, 32), dtype=int)
    person = (slice(4, 28), slice(2, 10))
    semantic[person], instances[person] = CLASS_ID["person"], 2
    parts[4:10, 2:10], parts[10:28, 2:10] = 1, 9
    things = things_seen(semantic, instances)
    regions = regions_of(things, semantic, parts, np.random.default_rng(0))
    said = {" ".join(WORDS[word] for word in words if word): number for number, words in enumerate(regions.words, 1)}
    assert set(said) == {
        "",
        "a large wall at the middle centre",
        "a large person at the left centre",
        "a small head at the left top",
        "a large torso at the left centre",
    }
    assert ((regions.maps[0] == said["a large person at the left centre"]) == (instances == 2)).all()
    assert ((regions.maps[1] == said["a small head at the left top"]) == (parts == 1)).all()
    assert (regions.maps[1] > REGIONS)[parts > 0].all()
    assert (regions.maps[1] == 0)[parts == 0].all()
