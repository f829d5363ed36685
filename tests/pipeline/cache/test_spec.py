import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.spec import CacheSpec, EncodingSpec, TeacherSpec, load_spec, parse_spec
from pipeline.settings import overridden
from sak.errors import UsageError
from sak.teachers.recipe import TeacherFacts, is_sam

VIEWS = {"kind": "random_resized_crop", "size": 96}
FACTS = {"dino": TeacherFacts(48, 12, (6, 6)), "sam": TeacherFacts(48, 12, (16, 16))}
DOCUMENT = {
    "views": VIEWS,
    "teachers": {
        "dino": {"model": "timm/vit_small_patch14_dinov2.lvd142m", "encoding": "float16"},
        "sam": {"model": "timm/samvit_base_patch16.sa1b"},
    },
}


def parse(**changes) -> CacheSpec:
    return parse_spec({**DOCUMENT, **changes}, source="s.yaml", facts=FACTS)


def parse_teacher(name="dino", **changes) -> TeacherSpec:
    teachers = {**DOCUMENT["teachers"], name: {**DOCUMENT["teachers"][name], **changes}}
    return parse(teachers=teachers).teachers[name]


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_written_out():
    spec = parse()
    assert spec.grid == (6, 6)
    assert spec.student_grid == (6, 6)
    assert spec.block == 512  # one teacher is kept in 16 bits
    dino, sam = spec.teachers["dino"], spec.teachers["sam"]
    assert dino.levels == sam.levels == (3, 6, 9, 12)
    assert (dino.grid, dino.input_size, dino.sam_padding) == ("native", (96, 96), None)
    assert (sam.grid, sam.input_size, sam.sam_padding) == ("projection", (1024, 1024), "keep")
    assert sam.encoding == EncodingSpec(kind="int8")


def test_a_spec_that_spells_its_defaults_out_equals_one_that_does_not():
    spelled = {
        "grid": "projection",
        "input_size": 1024,
        "sam_padding": "keep",
        "levels": [3, 6, 9, 12],
        "encoding": {"kind": "int8"},
        "weights": "pretrained",
    }
    assert parse_teacher("sam", **spelled) == parse().teachers["sam"]


def test_a_parsed_spec_parses_again_to_itself():
    spec = parse()
    assert parse_spec(spec.model_dump(mode="json"), facts=FACTS) == spec


def test_eight_bits_make_blocks_of_1024():
    assert parse(teachers={"sam": DOCUMENT["teachers"]["sam"]}).block == 1024


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codecs": "none"}, "unknown key codecs; did you mean 'codec'?"),
        ({"codec": "lz4"}, "codec must be one of none, zstd, blosc, pcodec, got 'lz4'"),
        ({"format": "hdf5"}, "format must be one of zarr, webdataset, got 'hdf5'"),
        ({"format": "webdataset", "codec": "zstd"}, "codec zstd goes with format zarr"),
        ({"block": 0}, "block: "),
        ({"student_grid": [0, 4]}, "student_grid.0: "),
        ({"teachers": {}}, "teachers: "),
        ({"teachers": {"Bad Name": DOCUMENT["teachers"]["sam"]}}, "a teacher's name is a folder's"),
        ({"teachers": {"a--b": DOCUMENT["teachers"]["sam"]}}, "a teacher's name is a folder's"),
        (
            {"views": {"kind": "random_resized_crop", "sise": 96}},
            "views.size is missing; unknown key views.sise; did you",
        ),
        ({"calibration": {"sample": 3}}, "unknown key calibration.sample; did you mean 'samples'?"),
        ({"calibration": {"samples": 1}}, "calibration.samples: "),
    ],
)
def test_what_is_wrong_at_the_top_is_named(change, told):
    text = error_of(parse, **change)
    assert text.startswith("s.yaml: ")
    assert told in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encodin": "int8"}, "unknown key teachers.dino.encodin; did you mean 'encoding'?"),
        ({"encoding": "int9"}, "teachers.dino.encoding.kind must be one of float16, bfloat16, int8, int4, got 'int9'"),
        ({"encoding": {"kind": "int8", "pac": 3}}, "unknown key teachers.dino.encoding.pac; did you mean 'pca'?"),
        ({"encoding": {"pca": 49}}, "teachers.dino: encoding.pca must be at most the teacher's width 48, got 49"),
        ({"levels": [3, 3, 9]}, "levels must be increasing block numbers between 1 and 12, got (3, 3, 9)"),
        ({"levels": [0, 3]}, "levels must be increasing block numbers between 1 and 12, got (0, 3)"),
        ({"levels": [3, 13]}, "levels must be increasing block numbers between 1 and 12, got (3, 13)"),
        ({"levels": []}, "levels must be increasing block numbers between 1 and 12, got ()"),
        ({"grid": "pooled"}, "teachers.dino.grid must be one of native, projection, area, got 'pooled'"),
        ({"precision": "fp8"}, "teachers.dino.precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"weights": "random"}, "must be pretrained, a file or random:SEED, got 'random'"),
        ({"model": "tim/vit"}, "did you mean 'timm'?"),
        ({"model": "timm/vit_base_patch16_clip_384"}, "names no weights tag"),
        ({"sam_padding": "crop"}, "sam_padding belongs to SAM"),
    ],
)
def test_what_is_wrong_with_a_teacher_is_named(change, told):
    assert told in error_of(parse_teacher, **change)


def test_more_than_three_findings_are_counted():
    text = error_of(parse, a=1, b=2, c=3, d=4, e=5)
    assert text.endswith("; and 2 more")


def test_random_weights_need_no_tag():
    assert parse_teacher(model="timm/vit_small_patch14_dinov2", weights="random:3").weights == "random:3"


@pytest.mark.parametrize(
    ("model", "sam"),
    [
        ("timm/samvit_base_patch16.sa1b", True),
        ("segment_anything/vit_b", True),
        ("demo/demo-sam", True),
        ("timm/vit_base_patch14_dinov2.lvd142m", False),
        ("open_clip/ViT-B-16/openai", False),
        ("demo/demo-dino", False),
    ],
)
def test_sam_is_known_by_its_model(model, sam):
    assert is_sam(model) is sam


def test_a_file_is_read_with_overrides(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("views: {kind: resize, size: 32}\nteachers:\n  sam: {model: segment_anything/vit_b}\n")
    lines = ["teachers.sam.encoding=int4", "teachers.sam.levels=[1, 2]", "views.seed=7"]
    spec = load_spec(path, lines, facts=FACTS)
    assert (spec.teachers["sam"].encoding.kind, spec.teachers["sam"].levels, spec.views.seed) == ("int4", (1, 2), 7)
    assert (
        load_spec(path, {"teachers.sam.encoding": "int4", "teachers.sam.levels": [1, 2], "views.seed": 7}, facts=FACTS)
        == spec
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("views: [", "not valid YAML"),
        ("- a\n", "is not a cache spec: it holds list, not named settings"),
        ("", "is not a cache spec: it holds NoneType, not named settings"),
        ("codec: none\ncodec: zstd\n", "key 'codec' is given twice"),
        ("teachers:\n  sam: {model: a}\n  sam: {model: b}\n", "key 'sam' is given twice"),
        ("views: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_spec_are_refused(tmp_path, text, told):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    message = error_of(load_spec, path, facts=FACTS)
    assert message.startswith(str(path))
    assert told in message


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "No such file" in error_of(load_spec, tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in error_of(load_spec, tmp_path / "s.yaml")


@pytest.mark.parametrize("line", ["a", "a..b=1", "=1", "a=[1"])
def test_lines_that_set_nothing_are_refused(line):
    assert f"--set {line}" in error_of(overridden, {}, [line])


def test_a_value_cannot_be_set_inside_what_is_no_mapping():
    assert "codec is 'none', not a mapping" in error_of(overridden, {"codec": "none"}, ["codec.level=3"])


NAMES = st.sampled_from(["a", "b", "c"])


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers())), NAMES, NAMES, st.integers())
def test_setting_changes_one_place_and_not_the_original(document, outer, inner, value):
    before = {name: dict(each) for name, each in document.items()}
    changed = overridden(document, {f"{outer}.{inner}": value})
    assert document == before
    assert changed == {**before, outer: {**before.get(outer, {}), inner: value}}


def test_facts_come_from_the_teacher_registry():
    document = {
        "views": {"kind": "resize", "size": [64, 96]},
        "teachers": {
            "dino": {
                "model": "timm/vit_small_patch14_dinov2.lvd142m",
                "weights": "random:0",
                "overrides": {"embed_dim": 48, "depth": 8, "num_heads": 3},
            }
        },
    }
    assert parse_spec(document).teachers["dino"].levels == (2, 4, 6, 8)
    document["teachers"]["dino"]["levels"] = [9]
    assert "between 1 and 8, got (9,)" in error_of(parse_spec, document)
    document["teachers"]["dino"]["model"] = "timm/vit_smal_patch14_dinov2.lvd142m"
    assert "spec: teachers.dino: " in error_of(parse_spec, document)
