import json

import pytest
import torch
from safetensors.torch import save_file

from sak.errors import SakError, UsageError
from sak.teachers import TEACHER_REVISION, build_teacher
from sak.teachers.weights import WeightsError

SIZE = (64, 96)
MODELS = {  # what is tapped: class, register and distillation tokens or none, rotary or learnt positions, SwiGLU
    "dinov2": "timm/vit_base_patch14_dinov2.lvd142m",
    "dinov2 with registers": "timm/vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2 with SwiGLU": "timm/vit_giant_patch14_dinov2.lvd142m",
    "dinov3": "timm/vit_small_patch16_dinov3.lvd1689m",
    "dinov3 with biases": "timm/vit_small_patch16_dinov3_qkvb.lvd1689m",
    "clip": "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
    "clip with QuickGELU": "timm/vit_base_patch16_clip_quickgelu_224.openai",
    "siglip": "timm/vit_base_patch16_siglip_384.webli",
    "siglip2": "timm/vit_base_patch16_siglip_384.v2_webli",
    "deit3": "timm/deit3_base_patch16_384.fb_in22k_ft_in1k",
    "deit with a distillation token": "timm/deit_base_distilled_patch16_224.fb_in1k",
    "supervised": "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
    "eva02": "timm/eva02_base_patch14_224.mim_in22k",
    "open_clip": "open_clip/ViT-B-16-quickgelu/openai",
    "open_clip around timm": "open_clip/ViT-B-16-SigLIP2-384/webli",
    "sam": "timm/samvit_base_patch16.sa1b",
    "segment_anything": "segment_anything/vit_b",
}
SAMS = ("sam", "segment_anything")
DINOV2 = MODELS["dinov2"]


@pytest.fixture(scope="module", params=MODELS)
def teacher(request, tiny):
    """Each kind of teacher, tiny, for images of 64x96."""
    input_size = 128 if request.param in SAMS else None
    return build_teacher(
        MODELS[request.param], weights="random:0", image_size=SIZE, input_size=input_size, overrides=tiny
    )


def test_maps_are_finite_and_have_the_width_grid_and_levels_said(teacher, images):
    maps = teacher(images)
    assert maps.levels == teacher.levels == (1, 2, 3, 4)
    assert maps.width == teacher.width == 32
    assert maps.grid == teacher.grid() == teacher.grid(SIZE)
    for map_ in maps:
        assert map_.shape == (2, 32, *teacher.grid())
        assert map_.dtype == torch.float32
        assert map_.isfinite().all()
        assert not map_.requires_grad


def test_special_tokens_are_left_out_and_rows_come_first(teacher, images):
    """Changing one patch changes its own position of level 1 most: the first, and the last of the first row."""
    rows, columns = teacher.grid()
    patch = 12 if rows == columns else teacher.tower.patch  # SAM: 96 pixels become 8 patches
    for column in (0, columns - 1):
        changed = images.clone()
        changed[..., :patch, column * patch : (column + 1) * patch] += 0.5
        changed %= 1
        difference = (teacher(changed).maps[0] - teacher(images).maps[0]).norm(dim=1)
        assert difference.flatten(1).argmax(dim=1).tolist() == [column] * 2


def test_a_teacher_is_frozen_and_stays_in_eval_mode(teacher):
    wrapped = torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    assert teacher.parameter_count == sum(parameter.numel() for parameter in teacher.parameters())


def test_the_same_seed_makes_the_same_teacher(teacher, images, tiny):
    again = build_teacher(
        teacher.model, weights="random:0", image_size=SIZE, input_size=teacher.input_size, overrides=tiny
    )
    other = build_teacher(
        teacher.model, weights="random:1", image_size=SIZE, input_size=teacher.input_size, overrides=tiny
    )
    assert again.weights_sha256 == teacher.weights_sha256 != other.weights_sha256
    assert again.is_random
    for first, second in zip(again(images), teacher(images), strict=True):
        assert torch.equal(first, second)


def test_deeper_levels_do_not_change_with_the_blocks_that_are_dropped(teacher, images, tiny):
    shallow = build_teacher(
        teacher.model,
        weights="random:0",
        image_size=SIZE,
        input_size=teacher.input_size,
        overrides=tiny,
        levels=(1, 3),
    )
    assert torch.equal(shallow(images)[3], teacher(images)[3])
    assert shallow.weights_sha256 == teacher.weights_sha256
    assert shallow.depth == teacher.depth == 4
    assert shallow.parameter_count < teacher.parameter_count


def test_random_weights_touch_no_global_generator(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_teacher(DINOV2, weights="random:0", image_size=28, overrides=tiny)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2e-2), ("fp16", 3e-3)])
def test_half_precision_stays_near_and_returns_float32(teacher, images, tiny, precision, bound):
    half = build_teacher(
        teacher.model,
        weights="random:0",
        image_size=SIZE,
        input_size=teacher.input_size,
        overrides=tiny,
        precision=precision,
    )
    for near, exact in zip(half(images), teacher(images), strict=True):
        assert near.dtype == torch.float32
        error = ((near - exact).norm() / exact.norm()).item()
        assert 0 < error < bound


def test_a_surrounding_autocast_changes_nothing(teacher, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = teacher(images)
    for first, second in zip(inside, teacher(images), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 with registers", "clip", "siglip", "deit3", "open_clip", "eva02"])
def test_another_size_has_another_grid_and_the_same_weights(kind, tiny):
    """The identity is taken before positions are resampled."""
    square, wide = (
        build_teacher(MODELS[kind], weights="random:0", image_size=size, overrides=tiny) for size in (84, (42, 112))
    )
    assert square.weights_sha256 == wide.weights_sha256
    assert square.grid() != wide.grid()
    assert wide(torch.rand(1, 3, 42, 112)).grid == wide.grid() == (42 // wide.tower.patch, 112 // wide.tower.patch)


def test_patch_14_leaves_the_last_pixels_unused(tiny):
    teacher = build_teacher(DINOV2, weights="random:0", image_size=32, overrides=tiny)
    assert build_teacher(DINOV2, device="meta").grid() == (27, 27)
    images = torch.rand(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 28:, :] = 0
    changed[..., 28:] = 0
    assert torch.equal(teacher(images)[4], teacher(changed)[4])


def test_sam_takes_any_image_size_and_crop_leaves_padding_out(tiny):
    keep, crop = (
        build_teacher(MODELS["sam"], weights="random:0", input_size=128, overrides=tiny, sam_padding=padding)
        for padding in ("keep", "crop")
    )
    images = torch.rand(1, 3, 48, 96)
    assert keep(images).grid == (8, 8)
    assert crop(images).grid == crop.grid((48, 96)) == (4, 8)
    assert torch.equal(crop(images)[2], keep(images)[2][..., :4, :])
    assert crop(images.transpose(2, 3)).grid == (8, 4)


def test_an_input_size_of_its_own_resizes_the_images(tiny):
    teacher = build_teacher(DINOV2, weights="random:0", image_size=32, input_size=56, overrides=tiny)
    assert teacher(torch.rand(1, 3, 32, 32)).grid == teacher.grid() == (4, 4)


def test_native_normalisation_is_the_weights_own(tiny):
    clip = MODELS["clip with QuickGELU"]
    imagenet, native = (
        build_teacher(clip, weights="random:0", image_size=32, overrides=tiny, normalization=kind)
        for kind in ("imagenet", "native")
    )
    assert imagenet.normalization.mean == (0.485, 0.456, 0.406)
    assert native.normalization.mean == (0.48145466, 0.4578275, 0.40821073)
    open_clip = build_teacher("open_clip/ViT-B-16-quickgelu/openai", device="meta", normalization="native")
    assert native.normalization == open_clip.normalization
    siglip = build_teacher("open_clip/ViT-B-16-SigLIP2-384/webli", device="meta", normalization="native")
    assert siglip.normalization == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = torch.rand(1, 3, 32, 32)
    assert not torch.equal(imagenet(images)[1], native(images)[1])


def test_everything_that_decides_features_is_in_the_identity(tiny):
    def identity(**changes):
        options = {"weights": "random:0", "image_size": 32, "overrides": tiny, **changes}
        built = build_teacher(options.pop("model", DINOV2), **options)
        return json.dumps(built.identity(), sort_keys=True)

    base = identity()
    assert json.loads(base)["revision"] == TEACHER_REVISION
    assert identity(name="another name") == base
    changes = [
        {"weights": "random:1"},
        {"image_size": 42},
        {"input_size": 42},
        {"levels": (1, 2)},
        {"normalization": "native", "model": MODELS["clip"]},
        {"model": MODELS["clip"]},
        {"precision": "bf16"},
        {"model": MODELS["sam"], "input_size": 64},
        {"model": MODELS["sam"], "input_size": 64, "sam_padding": "crop"},
    ]
    assert len({base, *(identity(**change) for change in changes)}) == len(changes) + 1


def test_a_teacher_on_the_meta_device_has_no_identity():
    teacher = build_teacher(DINOV2, device="meta")
    with pytest.raises(SakError, match="built on the meta device, so it has no weights"):
        teacher.identity()


def test_a_registered_name_is_a_model_string_and_names_the_teacher(tiny):
    by_name = build_teacher("dinov2-b", weights="random:0", image_size=28, overrides=tiny)
    by_model = build_teacher(DINOV2, weights="random:0", image_size=28, overrides=tiny)
    other = build_teacher("timm/vit_tiny_patch16_224.augreg_in21k", device="meta")
    renamed = build_teacher("dinov2-b", device="meta", name="dino")
    assert (by_name.name, by_model.name, other.name, renamed.name) == (
        "dinov2-b",
        "dinov2-b",
        "vit_tiny_patch16_224",
        "dino",
    )
    assert by_name.model == DINOV2
    assert "RANDOM" in repr(by_name)


@pytest.mark.parametrize("levels", [(3, 3, 9), (9, 3), (0, 3), (6, 13), (-1,), ()])
def test_wrong_levels_are_refused(levels):
    with pytest.raises(UsageError) as error:
        build_teacher(DINOV2, levels=levels, device="meta")
    assert str(error.value) == f"dinov2-b: levels must be increasing block numbers between 1 and 12, got {levels}"


def test_a_depth_without_quarters_asks_for_levels_where_the_registry_names_none():
    with pytest.raises(UsageError, match="a depth of 27 has no quarters to take levels from; name the levels"):
        build_teacher("timm/vit_so400m_patch14_siglip_224.webli", device="meta")
    assert build_teacher("timm/vit_so400m_patch14_siglip_384.webli", device="meta").levels == (7, 14, 20, 27)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("vit_base", "no teacher is named 'vit_base'; "),
        ("tim/vit_base.x", "'tim/vit_base.x' is no teacher model; write timm/<model>.<tag>, open_clip/"),
        ("custom:module", "'custom:module' is no teacher model"),
        ("timm/", "'timm/' is no teacher model"),
        (
            "timm/vit_base_patch14_dinov9.x",
            "timm has no model 'vit_base_patch14_dinov9'; did you mean 'vit_base_patch1",
        ),
        ("timm/vit_base_patch14_dinov2", "the weights tag must be spelled out; known: lvd142m"),
        ("timm/vit_base_patch14_dinov2.lvd", "has no weights 'lvd'; did you mean 'lvd142m'?"),
        ("timm/resnet50.a1_in1k", "resnet50 is no plain ViT"),
        (
            "timm/vit_base_patch16_224_in21k.x",
            "timm calls 'vit_base_patch16_224_in21k' vit_base_patch16_224.augreg_in21k",
        ),
        ("timm/vit_base_r50_s16_384.orig_in21k_ft_in1k", "vit_base_r50_s16_384 is no plain ViT"),
        ("open_clip/ViT-B-61/openai", "open_clip has no model 'ViT-B-61'; did you mean 'ViT-B-"),
        ("open_clip/ViT-B-16", "the weights tag must be spelled out; known: openai"),
        ("open_clip/ViT-B-16/laion", "ViT-B-16 has no weights 'laion'"),
        ("open_clip/RN50/cc12m", "these weights were trained with QuickGELU"),
        ("open_clip/RN50-quickgelu/cc12m", "RN50-quickgelu is a ResNet; teachers are plain ViTs"),
        ("open_clip/convnext_base/laion400m_s13b_b51k", "convnext_base is no plain ViT"),
        ("segment_anything/vit_x", "segment_anything has no model 'vit_x'; did you mean 'vit_"),
        ("timm/vit_base_patch16_clip_224.openai", "use timm/vit_base_patch16_clip_quickgelu_224.openai"),
        ("timm/vit_base_patch16_clip_224.dfn2b", "use open_clip/ViT-B-16-quickgelu/dfn2b"),
        (
            "timm/vit_large_patch14_clip_224.metaclip_400m",
            "use timm/vit_large_patch14_clip_quickgelu_224.metaclip_400m",
        ),
        ("open_clip/ViT-B-16/openai", "use open_clip/ViT-B-16-quickgelu/openai"),
        ("open_clip/ViT-B-16/dfn2b", "use open_clip/ViT-B-16-quickgelu/dfn2b"),
    ],
)
def test_what_is_no_teacher_is_refused_with_the_way_out(model, said):
    with pytest.raises(UsageError) as error:
        build_teacher(model, weights="random:0", device="meta")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"normalization": "none"}, "dinov2-b: normalization must be one of imagenet, native, got 'none'"),
        ({"precision": "fp64"}, "dinov2-b: precision must be one of fp32, bf16, fp16, got 'fp64'"),
        ({"sam_padding": "cut"}, "dinov2-b: sam_padding must be one of keep, crop, got 'cut'"),
        ({"image_size": 0}, "image_size must be one positive number of pixels or (height, width), got 0"),
        ({"image_size": (13, 64)}, "dinov2-b: images of 13x64 hold no whole patch of 14x14 pixels"),
        ({"overrides": {"embed_dims": 8}}, "no size override 'embed_dims'; did you mean 'embed_dim'?"),
        ({"weights": "random"}, "random weights need a seed, a whole number from 0: random:SEED"),
        ({"model": MODELS["sam"], "input_size": (64, 96)}, "sam-b: input_size must be the side of a square"),
        (
            {"model": MODELS["sam"], "input_size": 100},
            "sam-b: input_size must be the side of a square and a multiple of 16",
        ),
    ],
)
def test_wrong_options_are_refused_with_the_way_out(options, said):
    with pytest.raises(UsageError) as error:
        build_teacher(options.pop("model", DINOV2), device="meta", **options)
    assert said in str(error.value)


def test_wrong_images_are_refused(tiny):
    teacher = build_teacher(DINOV2, weights="random:0", image_size=28, overrides=tiny)
    for images, said in (
        (torch.rand(1, 3, 28, 42), "build it with image_size=(28, 42)"),
        (torch.rand(3, 28, 28), "must be (B, 3, H, W)"),
        (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), "divide bytes by 255"),
        (torch.full((1, 3, 28, 28), 2.0), "must lie in [0, 1]"),
        (torch.rand(1, 3, 28, 28) * 255, "must lie in [0, 1]"),
    ):
        with pytest.raises(UsageError) as error:
            teacher(images)
        assert said in str(error.value)


def test_the_default_device_of_torch_is_where_a_teacher_goes():
    with torch.device("meta"):
        teacher = build_teacher("dinov3-7b", weights="random:0")
    assert all(parameter.is_meta for parameter in teacher.parameters())


def test_an_architecture_without_published_weights_takes_no_pretrained_ones(tiny):
    model = "timm/vit_small_patch16_18x2_224"
    assert build_teacher(model, weights="random:0", image_size=32, overrides=tiny).is_random
    with pytest.raises(WeightsError, match="has no published weights; pass weights=FILE"):
        build_teacher(model, image_size=32, overrides=tiny)


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (DINOV2, "timm/vit_base_patch14_dinov2.lvd142m"),
        ("open_clip/ViT-B-16-quickgelu/openai", "timm/vit_base_patch16_clip_224.openai"),
    ],
)
def test_missing_weights_never_become_random_ones(offline_hub, model, place):
    with pytest.raises(SakError) as error:
        build_teacher(model)
    assert str(error.value) == (
        f"{model}: weights of {place} are not in {offline_hub} and could not be fetched (HF_HUB_OFFLINE is set); "
        f"run `hf download {place}` where there is a network, or pass weights=FILE, or weights='random:SEED' for a test"
    )


def test_pretrained_weights_come_from_the_cache_without_a_network(offline_hub, tiny, images):
    source = build_teacher(DINOV2, weights="random:4", image_size=518, overrides=tiny)
    snapshot = offline_hub / "models--timm--vit_base_patch14_dinov2.lvd142m" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    save_file(source.tower.model.state_dict(), snapshot / "model.safetensors")
    cached = build_teacher(DINOV2, image_size=SIZE, overrides=tiny)
    assert not cached.is_random
    assert cached.weights_sha256 == source.weights_sha256
    random = build_teacher(DINOV2, weights="random:4", image_size=SIZE, overrides=tiny)
    for first, second in zip(cached(images), random(images), strict=True):
        assert torch.equal(first, second)


def test_a_file_of_another_model_is_refused(tiny, save_state):
    clip = build_teacher(MODELS["clip"], weights="random:0", image_size=64, overrides=tiny)
    path = save_state(clip.tower.model.state_dict())
    with pytest.raises(
        WeightsError, match=r"of another model: patch_embed.proj.weight has patches of 16x16, wanted 14x14"
    ):
        build_teacher(DINOV2, weights=path, image_size=64, overrides=tiny)
    with pytest.raises(WeightsError, match=r"the file misses .* and has norm_pre\.bias, norm_pre\.weight"):
        build_teacher(MODELS["supervised"], weights=path, image_size=64, overrides=tiny)
    with pytest.raises(WeightsError, match=r"of another model: .*blocks\.4\.norm1\.weight"):
        build_teacher(MODELS["clip"], weights=path, image_size=64, overrides={**tiny, "depth": 8})
    with pytest.raises(WeightsError, match=r"is \(1, 1, 32\), wanted \(1, 1, 64\)"):
        build_teacher(MODELS["clip"], weights=path, image_size=64, overrides={**tiny, "embed_dim": 64})


def test_head_norm_and_neck_in_a_file_are_no_part_of_the_teacher(tiny, save_state):
    source = build_teacher(MODELS["sam"], weights="random:0", input_size=64, overrides=tiny)
    state = source.tower.model.state_dict()
    plain = save_state(state, name="plain.safetensors")
    more = save_state(
        {**state, "neck.0.weight": torch.zeros(3), "head.fc.bias": torch.zeros(3)}, name="more.safetensors"
    )
    first, second = (
        build_teacher(MODELS["sam"], weights=path, input_size=64, overrides=tiny) for path in (plain, more)
    )
    assert first.weights_sha256 == second.weights_sha256


def test_dinov3_files_with_attention_biases_need_the_model_that_has_them(tiny, save_state, capsys):
    model = MODELS["dinov3"]
    source = build_teacher(model, weights="random:0", image_size=64, overrides=tiny)
    original = {
        key.replace("reg_token", "storage_tokens"): value for key, value in source.tower.model.state_dict().items()
    }
    original = {
        key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): value for key, value in original.items()
    }
    zero = {f"blocks.{number}.attn.qkv.bias": torch.zeros(96) for number in range(4)}
    loaded = build_teacher(model, weights=save_state({**original, **zero}), image_size=64, overrides=tiny)
    assert loaded.weights_sha256 == source.weights_sha256
    assert capsys.readouterr().out == ""
    biased = save_state({**original, **zero, "blocks.2.attn.qkv.bias": torch.ones(96)}, name="biased.safetensors")
    with pytest.raises(WeightsError, match=r"is not zero .* use timm/vit_small_patch16_dinov3_qkvb"):
        build_teacher(model, weights=biased, image_size=64, overrides=tiny)
    qkvb = build_teacher(MODELS["dinov3 with biases"], weights=biased, image_size=64, overrides=tiny)
    assert qkvb.tower.model.blocks[2].attn.q_bias.unique().tolist() == [1.0]
    assert qkvb.tower.model.blocks[2].attn.k_bias.unique().tolist() == [0.0]


def test_dinov2s_own_files_are_read(tiny, save_state, images):
    """Registers: the original adds a position to the class token, timm's model holds the sum."""
    source = build_teacher(MODELS["dinov2 with registers"], weights="random:0", image_size=518, overrides=tiny)
    state = source.tower.model.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 32), state["pos_embed"]], dim=1)
    path = save_state({**state, "mask_token": torch.zeros(1, 32), "norm.weight": torch.ones(32)})
    loaded = build_teacher(MODELS["dinov2 with registers"], weights=path, image_size=SIZE, overrides=tiny)
    assert loaded.weights_sha256 == source.weights_sha256
    assert loaded(images).grid == (4, 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embed_dim": 25, "num_heads": 2}, "embed_dim 25 is no multiple of num_heads 2"),
        ({"embed_dim": 24, "num_heads": 0}, "size override num_heads must be at least 1, got 0"),
        ({"depth": 0}, "size override depth must be at least 1, got 0"),
    ],
)
def test_sizes_that_no_model_has_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        build_teacher(DINOV2, weights="random:0", overrides=overrides)


@pytest.mark.parametrize("levels", [("2", "4"), 3])
def test_levels_that_are_no_numbers_are_refused(tiny, levels):
    with pytest.raises(UsageError, match="levels must be block numbers, got "):
        build_teacher(DINOV2, weights="random:0", overrides=tiny, levels=levels)


def test_a_size_in_fractions_of_a_pixel_is_refused():
    with pytest.raises(UsageError, match=r"image_size must be one positive number of pixels.*got 56\.0"):
        build_teacher(DINOV2, weights="random:0", image_size=56.0)
