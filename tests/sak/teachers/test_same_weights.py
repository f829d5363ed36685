"""The same weights through two libraries are the same teacher."""

import pytest
import torch
from segment_anything import sam_model_registry
from torch import nn

from sak.teachers import build_teacher
from sak.teachers.positions import FusedAttention
from sak.teachers.segment_anything_teacher import SIZES

TIMM_CLIP = "timm/vit_base_patch16_clip_quickgelu_224.openai"
OPEN_CLIP = "open_clip/ViT-B-16-quickgelu/openai"
TIMM_SAM = "timm/samvit_base_patch16.sa1b"
SEGMENT_ANYTHING = "segment_anything/vit_b"
CLIP_NAMES = (  # timm's, open_clip's
    ("patch_embed.proj.", "conv1."),
    ("norm_pre.", "ln_pre."),
    ("blocks.", "transformer.resblocks."),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def _relative(first, second):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(first, second, strict=True))


def _as_open_clip(state):
    renamed = {}
    for key, value in state.items():
        for ours, theirs in CLIP_NAMES:
            key = key.replace(ours, theirs)
        renamed[key] = value
    renamed["class_embedding"] = renamed.pop("cls_token")[0, 0]
    renamed["positional_embedding"] = renamed.pop("pos_embed")[0]
    return renamed


def _set_eps(teacher, eps):
    for module in teacher.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


@pytest.mark.parametrize("size", [(224, 224), (64, 96)], ids=["native", "resampled"])
def test_clip_from_open_clip_to_timm(tiny, save_state, size):
    """One file, read by both: timm knows open_clip's names."""
    source = build_teacher(OPEN_CLIP, weights="random:0", image_size=224, overrides=tiny)
    path = save_state(source.tower.model.state_dict(), prefix="visual.")
    ours, theirs = (
        build_teacher(model, weights=path, image_size=size, overrides=tiny) for model in (TIMM_CLIP, OPEN_CLIP)
    )
    assert theirs.weights_sha256 == source.weights_sha256
    assert ours.layer_norm_eps == theirs.layer_norm_eps == 1e-5
    images = torch.rand(2, 3, *size)
    assert _relative(ours(images), theirs(images)) < 1e-5
    assert _relative(ours.double()(images.double()), theirs.double()(images.double())) < 1e-12


@pytest.mark.parametrize("size", [(224, 224), (64, 96)], ids=["native", "resampled"])
def test_clip_from_timm_to_open_clip(tiny, save_state, size):
    source = build_teacher(TIMM_CLIP, weights="random:0", image_size=224, overrides=tiny)
    state = source.tower.model.state_dict()
    theirs = save_state(_as_open_clip(state), prefix="visual.", name="open_clip.safetensors")
    ours = save_state(state, name="timm.safetensors")
    first = build_teacher(TIMM_CLIP, weights=ours, image_size=size, overrides=tiny)
    second = build_teacher(OPEN_CLIP, weights=theirs, image_size=size, overrides=tiny)
    images = torch.rand(2, 3, *size)
    assert _relative(first(images), second(images)) < 1e-5


def test_the_text_tower_in_a_file_is_no_part_of_the_teacher(tiny, save_state):
    source = build_teacher(OPEN_CLIP, weights="random:0", image_size=224, overrides=tiny)
    state = {f"visual.{key}": value for key, value in source.tower.model.state_dict().items()}
    text = {
        "logit_scale": torch.ones(1),
        "positional_embedding": torch.ones(77, 8),
        "transformer.resblocks.0.ln_1.weight": torch.ones(8),
        "visual.proj": torch.ones(32, 8),
        "visual.ln_post.weight": torch.ones(32),
    }
    path = save_state({**state, **text})
    assert len({_sha(OPEN_CLIP, path, tiny), source.weights_sha256}) == 1
    assert _sha(TIMM_CLIP, path, tiny) != source.weights_sha256  # names are part of an identity


def _sha(model, path, tiny):
    return build_teacher(model, weights=path, image_size=64, overrides=tiny).weights_sha256


def test_siglip_through_open_clip_is_timms(tiny, save_state, images):
    timm_siglip = "timm/vit_base_patch16_siglip_384.v2_webli"
    source = build_teacher(timm_siglip, weights="random:0", image_size=(64, 96), overrides=tiny)
    native = build_teacher(timm_siglip, weights="random:0", image_size=384, overrides=tiny)
    path = save_state({**native.tower.model.state_dict()}, prefix="visual.trunk.")
    theirs = build_teacher("open_clip/ViT-B-16-SigLIP2-384/webli", weights=path, image_size=(64, 96), overrides=tiny)
    assert theirs.weights_sha256 == source.weights_sha256
    assert _relative(theirs(images), source(images)) == 0


@pytest.mark.parametrize("side", [128, 96], ids=["as in the file", "resampled"])
@pytest.mark.parametrize("direction", ["to timm", "to segment_anything"])
def test_sam_through_both_libraries(tiny, save_state, side, direction):
    """Their LayerNorm epsilons differ, 1e-5 and 1e-6, which alone moves features by 1e-4: set equal, they agree."""
    model = SEGMENT_ANYTHING if direction == "to timm" else TIMM_SAM
    source = build_teacher(model, weights="random:0", input_size=128, overrides=tiny).tower.model.state_dict()
    original = {key.replace(".mlp.fc", ".mlp.lin"): value for key, value in source.items()}
    file = save_state(original, prefix="image_encoder.")
    renamed = save_state(
        {key.replace(".mlp.lin", ".mlp.fc"): value for key, value in source.items()}, name="timm.safetensors"
    )
    timm_file = file if direction == "to timm" else renamed
    ours = build_teacher(TIMM_SAM, weights=timm_file, input_size=side, overrides=tiny)
    theirs = build_teacher(SEGMENT_ANYTHING, weights=file, input_size=side, overrides=tiny)
    assert (ours.layer_norm_eps, theirs.layer_norm_eps) == (1e-5, 1e-6)
    images = torch.rand(1, 3, 60, 90)
    assert 1e-5 < _relative(ours(images), theirs(images)) < 1e-3
    _set_eps(ours, 1e-6)
    assert _relative(ours(images), theirs(images)) < 1e-5
    assert _relative(ours.double()(images.double()), theirs.double()(images.double())) < 1e-12


def test_the_encoders_drawn_are_those_that_segment_anything_builds():
    for name in SIZES:
        with torch.device("meta"):
            theirs = sam_model_registry[name]().image_encoder
        ours = build_teacher(f"segment_anything/{name}", device="meta").tower.model
        wanted = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("neck.")}
        assert {key: value.shape for key, value in ours.state_dict().items()} == wanted
        assert [block.window_size for block in ours.blocks] == [block.window_size for block in theirs.blocks]
        assert {norm.eps for norm in theirs.modules() if isinstance(norm, nn.LayerNorm)} == {1e-6}
        assert ours.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads
        assert type(ours.blocks[0].mlp.act) is type(theirs.blocks[0].mlp.act)


@pytest.mark.parametrize("library", ["timm", "segment_anything"])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_the_fused_attention_equals_the_libraries_own(library, grid):
    from segment_anything.modeling.image_encoder import Attention as Theirs
    from timm.models.vision_transformer_sam import Attention as Timms

    torch.manual_seed(0)
    own = (Timms if library == "timm" else Theirs)(32, num_heads=2, use_rel_pos=True, input_size=grid).double()
    for table in (own.rel_pos_h, own.rel_pos_w):
        nn.init.normal_(table)
    tokens = torch.randn(3, *grid, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(FusedAttention(own)(tokens), own(tokens), atol=1e-12, rtol=0)


def test_open_clip_features_are_the_inputs_of_its_next_block(tiny):
    """The tapped map is a block's raw output: the residual stream itself, no norm, no class token."""
    teacher = build_teacher(OPEN_CLIP, weights="random:0", image_size=64, overrides=tiny)
    seen = []
    handle = teacher.tower.model.transformer.resblocks[2].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    maps = teacher(torch.rand(1, 3, 64, 64))
    handle.remove()
    assert torch.equal(maps[2], seen[0][:, 1:].transpose(1, 2).reshape(1, 32, 4, 4))


def test_timm_features_are_the_inputs_of_its_next_block(tiny):
    teacher = build_teacher(
        "timm/vit_base_patch14_reg4_dinov2.lvd142m", weights="random:0", image_size=56, overrides=tiny
    )
    seen = []
    handle = teacher.tower.model.blocks[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    maps = teacher(torch.rand(1, 3, 56, 56))
    handle.remove()
    assert torch.equal(maps[2], seen[0][:, 5:].transpose(1, 2).reshape(1, 32, 4, 4))
