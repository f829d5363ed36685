import json
import re

import numpy as np
import pytest

from pipeline.cache.column_codec import column_layout
from pipeline.cache.key import column_document
from pipeline.cache.spec import CacheSpec, load_spec
from pipeline.cache.stores.base import ROW
from pipeline.cache.stores.tar_store import TarStore
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.cache.tools.plan import CachePlan, Rates, plan, plan_text
from pipeline.cache.tools.sizes import column_sizes, forward_operations, read_rate, step_ratio
from pipeline.storage import StorageError, open_location
from sak.errors import UsageError
from sak.teachers.recipe import TeacherFacts

IMAGENET = 1_281_167
B = {
    "dinov2": TeacherFacts(768, 12, (27, 27)),
    "clip": TeacherFacts(768, 12, (24, 24)),
    "sam": TeacherFacts(768, 12, (64, 64)),
}
L = {name: TeacherFacts(1024, 24, (64, 64) if name == "sam" else (27, 27)) for name in B}
TINY = {name: TeacherFacts(48, 12, grid) for name, grid in zip(B, [(9, 9), (8, 8), (16, 16)], strict=True)}
DEMO = {name: TeacherFacts(96, 12, facts.grid) for name, facts in TINY.items()}
FACTS = {
    "sak_b_val": B,
    "sak_l_val": L,
    "sak_b": B,
    "sak_b_native_fp16": B,
    "sak_b_small": B,
    "sak_l": L,
    "demo": DEMO,
    "demo_val": DEMO,
    "demo_random": TINY,
    "demo_random_val": TINY,
}


def spec_of(root, name, *overrides) -> CacheSpec:
    return load_spec(root / "cache_specs" / f"{name}.yaml", overrides, facts=FACTS[name])


def plan_of(root, name, samples=IMAGENET, views=1, overrides=(), **rates) -> CachePlan:
    return plan(spec_of(root, name, *overrides), samples, views, facts=FACTS[name], rates=Rates(**rates))


@pytest.fixture
def root(request):
    return request.config.rootpath


@pytest.mark.parametrize(
    ("name", "terabytes"), [("sak_b_native_fp16", 42.5), ("sak_b", 7.4), ("sak_l", 10.7), ("sak_b_small", 1.15)]
)
def test_imagenet_takes_what_is_claimed(root, name, terabytes):
    assert plan_of(root, name).total_bytes / 1e12 == pytest.approx(terabytes, rel=0.005)


@pytest.mark.parametrize("name", FACTS)
def test_the_comment_of_every_spec_is_true(root, name):
    text = (root / "cache_specs" / f"{name}.yaml").read_text()
    said = re.match(r"# ([\d.]+) MB an image and view, ([\d.]+) (TB|MB) for (ImageNet|250 images)", text)
    assert said, text
    found = plan_of(root, name, IMAGENET if said[4] == "ImageNet" else 250)
    assert found.bytes_per_image / 1e6 == pytest.approx(float(said[1]), rel=0.005)
    assert found.total_bytes / {"TB": 1e12, "MB": 1e6}[said[3]] == pytest.approx(float(said[2]), rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTS)
def test_the_registry_knows_the_teachers_of_every_spec(root, name):
    spec = load_spec(root / "cache_specs" / f"{name}.yaml")
    assert spec == spec_of(root, name)
    assert plan(spec, 10).total_bytes == plan_of(root, name, 10).total_bytes


def test_every_spec_file_is_tested(root):
    assert {path.stem for path in (root / "cache_specs").glob("*.yaml")} == set(FACTS)


def written_bytes(folder, spec, facts, name, samples) -> float:
    """Bytes of one column with all samples in one block, views beside them."""
    document = column_document(spec.teachers[name], spec, weights_sha256="0" * 64, teacher_revision="1")
    sizes = {"width": facts[name].width, "grid": facts[name].grid}
    layout = column_layout(document, **sizes, samples=samples, block=samples)
    location = open_location(folder / name)
    store = ZarrStore(location, layout) if spec.format == "zarr" else TarStore(location, layout, lambda n: f"n{n:08d}")
    store.prepare(1)
    with store.open_block(0, 0) as writer:
        writer.append(range(samples), {a.name: np.ones((samples, *a.shape), a.dtype) for a in layout.arrays})
        writer.finish()
    files = [path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()]
    return sum(files) + samples * ROW.itemsize


@pytest.mark.parametrize("form", ["zarr", "webdataset"])
@pytest.mark.parametrize(("name", "samples"), [("sak_b", 3), ("sak_b_small", 8), ("sak_b_native_fp16", 1)])
def test_a_written_cache_takes_what_was_planned(root, tmp_path, name, samples, form):
    spec = spec_of(root, name, f"format={form}", f"block={samples}")
    planned = {each.teacher: each.total for each in column_sizes(spec, B)}
    for teacher in spec.teachers:
        assert written_bytes(tmp_path, spec, B, teacher, samples) / samples == pytest.approx(planned[teacher], rel=0.01)


def test_levels_add_up_to_columns_and_columns_to_the_whole(root):
    found = plan_of(root, "sak_b", 1000, 3)
    assert found.read_bytes_per_image == sum(sum(each.levels.values()) for each in found.columns)
    assert found.bytes_per_image == pytest.approx(sum(each.total for each in found.columns))
    assert found.total_bytes == pytest.approx(3000 * found.bytes_per_image)
    assert found.columns[1].levels[3] == 576 * (768 + 2)
    assert found.columns[2].levels[3] == 576 * (768 + 2) + 4  # and the left-over


def test_a_codec_shrinks_what_it_is_expected_to(root):
    plain = plan_of(root, "sak_b_native_fp16").total_bytes
    assert plan_of(root, "sak_b_native_fp16", overrides=["codec=pcodec"]).total_bytes == pytest.approx(
        plain / 1.16, rel=1e-3
    )
    assert plan_of(root, "sak_b", overrides=["codec=pcodec"]).total_bytes == plan_of(root, "sak_b").total_bytes


def test_live_teachers_cost_what_the_arithmetic_says(root):
    assert step_ratio(spec_of(root, "sak_b"), B) == pytest.approx(4.2, rel=0.03)
    assert step_ratio(spec_of(root, "sak_l"), L) == pytest.approx(11.3, rel=0.03)
    assert forward_operations(B["clip"]) == pytest.approx(110e9, rel=0.01)


def test_extraction_pays_for_itself_after_as_many_epochs_as_views_where_reading_is_free(root):
    assert plan_of(root, "sak_b").break_even_epochs == pytest.approx(1)
    assert plan_of(root, "sak_b", views=4).break_even_epochs == pytest.approx(4)
    assert plan_of(root, "sak_b", views=3, epochs=30).break_even_runs == pytest.approx(0.1)


def test_slow_reading_delays_the_gain_and_then_denies_it(root):
    slow = plan_of(root, "sak_b", images_per_second=100.0, read_bytes_per_second=1e9)
    fast = plan_of(root, "sak_b", images_per_second=100.0, read_bytes_per_second=1e10)
    assert fast.break_even_epochs == pytest.approx(1)
    assert slow.break_even_epochs > 1.5
    assert (slow.keeps_up, fast.keeps_up) == (False, True)
    assert plan_of(root, "sak_b", images_per_second=100.0, read_bytes_per_second=1e8).break_even_epochs is None


def test_hours_and_money_follow_from_rates_and_prices(root):
    rates = {"images_per_second": 100.0, "gpu_hour_price": 2.0, "tb_month_price": 20.0}
    found = plan_of(root, "sak_b", 360_000, 2, **rates)
    assert found.hours == pytest.approx(2)
    assert found.extraction_money == pytest.approx(4)
    assert found.storage_money == pytest.approx(found.total_bytes / 1e12 * 20)
    silent = plan_of(root, "sak_b")
    assert (silent.hours, silent.extraction_money, silent.storage_money, silent.keeps_up, silent.fits) == (None,) * 5


def test_alternatives_are_cheaper_and_cheapest_first(root):
    for name in FACTS:
        found = plan_of(root, name)
        sizes = [each.bytes_per_image for each in found.alternatives]
        assert sizes == sorted(sizes)
        assert all(size < found.bytes_per_image for size in sizes)
        assert len(set(sizes)) == len(sizes) <= 2
    assert len(plan_of(root, "sak_b").alternatives) == 2


def test_room_decides_whether_it_fits(root):
    assert plan_of(root, "sak_b", free_bytes=8 * 10**12).fits is True
    assert plan_of(root, "sak_b", free_bytes=7 * 10**12).fits is False


def test_a_plan_is_json(root):
    document = json.loads(json.dumps(plan_of(root, "sak_b", images_per_second=50.0).as_dict()))
    assert document["columns"][2]["levels"]["12"] == 443_524
    assert document["columns"][0]["total_bytes"] + document["columns"][1]["total_bytes"] < document["total_bytes"]


def test_the_text_says_what_matters(root):
    text = plan_text(plan_of(root, "sak_b_native_fp16", read_bytes_per_second=1e9, free_bytes=10**12))
    assert "42.5 TB for 1,281,167 images in 1 view" in text
    assert "28.2 GB/s" in text
    assert "TOO SLOW: it would feed 30 images/s" in text
    assert "IT DOES NOT FIT: 1 TB are free" in text
    assert "dinov2 (RANDOM)" in plan_text(plan_of(root, "demo_random", 250))


@pytest.mark.parametrize(("samples", "views"), [(0, 1), (1, 0), (-5, 1)])
def test_counts_must_be_positive(root, samples, views):
    with pytest.raises(UsageError, match="samples and views must be at least 1"):
        plan_of(root, "sak_b", samples, views)


@pytest.mark.parametrize("name", ["images_per_second", "training_images_per_second", "gpu_hour_price", "epochs"])
def test_rates_must_be_positive(name):
    with pytest.raises(UsageError, match=f"{name.replace('_', '-')} must be positive, got 0"):
        Rates(**{name: 0})


def test_the_disk_is_measured_and_left_as_it_was(tmp_path):
    assert read_rate(tmp_path, sample_bytes=1 << 16, total_bytes=1 << 20) > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="none"):
        read_rate(tmp_path / "none")
