"""`ls`, `du`, `stats` and the quarantine list."""

import json
from pathlib import Path

import pytest

from pipeline.cache.folder import Cache
from pipeline.cache.quarantine import quarantine
from pipeline.cache.tools.inventory import du, ls, stats, summary_table


@pytest.fixture
def filled(writer, stored_as, made):
    maker = writer(spec=made.spec(format=stored_as), bad={"n003": "truncated file"})
    maker.write("dino")
    maker.write("clip", limit=10)
    maker.write("sam", views=2)
    return maker


def test_ls_says_what_every_column_is(filled, stored_as):
    clip, dino, sam = ls(filled.place)
    assert (dino.teacher, dino.encoding, dino.reduction, dino.grid, dino.levels) == (
        "dino",
        "int8",
        "native",
        (3, 3),
        (2, 4),
    )
    assert (dino.samples, dino.samples_planned, dino.blocks, dino.quarantined) == (19, 20, 3, 1)
    assert dino.complete
    assert (clip.random, clip.weights, clip.complete) == (True, "random:7", False)
    assert (clip.blocks, clip.blocks_planned, clip.samples) == (2, 3, 9)
    assert (sam.views, sam.samples, sam.reduction, sam.grid) == (2, 38, "projection", (2, 2))
    assert {each.format for each in (clip, dino, sam)} == {stored_as}


def test_ls_lists_a_damaged_column_among_the_others(filled):
    path = next(Path(filled.place, "columns").glob("dino-*/*/manifest.json"))
    path.write_text(path.read_text()[:-9])
    clip, dino, sam = ls(filled.place)
    assert "manifest.json: damaged" in dino.damage
    assert not dino.complete
    assert (clip.damage, sam.damage, sam.samples) == (None, None, 38)
    assert f"{dino.name} {dino.data[:8]} DAMAGED: " in summary_table([clip, dino, sam])
    assert summary_table([dino]).startswith(dino.name)


def test_du_and_stats_go_on_past_a_damaged_column(filled):
    whole_du, whole_stats = du(filled.place), stats(filled.place)
    path = next(Path(filled.place, "columns").glob("dino-*/*/manifest.json"))
    path.write_text(path.read_text()[:-9])
    clip, dino, sam = du(filled.place)
    assert "manifest.json: damaged" in dino.damage
    assert (dino.nbytes, dino.files) == (whole_du[1].nbytes - 9, whole_du[1].files)
    assert [clip, sam] == [whole_du[0], whole_du[2]]
    assert f"{dino.name} {dino.data[:8]} " in summary_table([clip, dino, sam])
    assert " files DAMAGED: " in summary_table([clip, dino, sam])
    told = stats(filled.place)
    damaged = [each for each in told if each.damage]
    assert [(each.name, each.summary) for each in damaged] == [(dino.name, {})]
    assert [each for each in told if not each.damage] == [each for each in whole_stats if each.name != dino.name]
    assert f"{dino.name} {dino.data[:8]} DAMAGED: " in summary_table(told)


def test_du_and_stats_go_on_past_a_damaged_record(filled):
    path = next(Path(filled.place, "columns").glob("dino-*/*/records/v000-b000001.json"))
    path.write_text(path.read_text()[:-9])
    assert [each.damage is None for each in du(filled.place)] == [each.damage is None for each in ls(filled.place)]
    assert {each.name.partition("-")[0] for each in stats(filled.place)} == {"clip", "dino", "sam"}


def test_ls_counts_writers(filled):
    column = filled.open("clip")
    assert {each.writers for each in ls(filled.place)} == {0}
    with column.lease(0, 2):
        assert [each.writers for each in ls(filled.place)] == [1, 0, 0]


def test_random_weights_are_marked_everywhere(filled):
    tables = [summary_table(ls(filled.place)), summary_table(du(filled.place)), summary_table(stats(filled.place))]
    for table in tables:
        marked = [line for line in table.splitlines() if "RANDOM" in line]
        assert marked
        assert all("clip" in line for line in marked)
        assert not any("clip-" in line and "RANDOM" not in line for line in table.splitlines())


def test_du_counts_every_byte_on_disk(filled):
    column = next(Path(filled.place).glob("columns/dino-*/*"))
    usage = next(each for each in du(filled.place) if each.name.startswith("dino"))
    assert usage.nbytes == sum(path.stat().st_size for path in column.rglob("*") if path.is_file())
    assert usage.files == sum(path.is_file() for path in column.rglob("*"))
    assert sum(usage.by_kind.values()) == usage.nbytes
    assert usage.by_level == {2: 19 * 9 * (8 + 2), 4: 19 * 9 * (8 + 2)}
    assert usage.stray == 0


def test_du_tells_what_no_record_vouches_for(filled):
    column = next(each for each in Cache.open(filled.place).columns if each.teacher == "dino")
    folder = Cache.open(filled.place).top.at(column)
    folder.delete("records/v000-b000001.json")
    assert next(each for each in du(filled.place) if each.name == column.name).stray > 0


def test_stats_are_pooled_over_the_blocks(filled):
    found = {(each.name.partition("-")[0], each.level): each for each in stats(filled.place)}
    assert set(found) == {(teacher, level) for teacher in ("clip", "dino", "sam") for level in (2, 4)}
    assert found["dino", 2].summary["samples"] == 19
    assert found["sam", 2].summary["samples"] == 38
    assert found["dino", 4].summary["cosine"] > 0.9999
    assert found["dino", 4].summary["relative_error"] < 0.01
    assert found["sam", 4].summary["leftover_share"] > found["dino", 4].summary["leftover_share"] == 0
    assert found["dino", 2].summary["token_norm_max"] > found["dino", 2].summary["token_norm"] > 50


def test_everything_goes_to_json(filled):
    for listing in (ls, du, stats):
        rows = json.loads(json.dumps([each.as_dict() for each in listing(filled.place)]))
        assert {row["name"].partition("-")[0] for row in rows} == {"clip", "dino", "sam"}


def test_an_overlay_lists_each_folder_by_itself(writer):
    writer("ro").write("dino", limit=8)
    overlay = writer(place=f"{writer('rw').place}:{writer('ro').place}")
    overlay.write("dino")
    listed = ls(overlay.place)
    assert [(Path(each.cache).name, each.blocks) for each in listed] == [("rw", 2), ("ro", 1)]


def test_the_quarantine_names_each_bad_image_once_with_its_reason(filled):
    from pipeline.cache.column import Column

    cache = Cache.open(filled.place)
    found = quarantine(Column.open(cache.top, place) for place in cache.columns)
    assert [(each.sample, each.key, each.reason) for each in found] == [(3, "n003", "truncated file")]
    assert [name.partition("-")[0] for name in found[0].columns] == ["clip", "dino", "sam"]
