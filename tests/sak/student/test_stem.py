import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from sak.errors import SakError, UsageError
from sak.student import stem as stem_weights_module
from sak.student.build import build_student
from sak.student.config import StudentConfig
from sak.student.sizes import STEMS, StemSize, stem_size
from sak.student.stem import Stem, load_stem_weights

SIZE = StemSize(width=24, depth=4, heads=3)
TIMM_NAME = "vit_base_patch16_384.augreg_in21k_ft_in1k"


def timm_vit(img_size=(48, 64), **options):
    return VisionTransformer(img_size=img_size, patch_size=16, embed_dim=24, depth=4, num_heads=3, **options).eval()


@pytest.mark.parametrize("img_size", [(48, 48), (48, 64)])
@torch.no_grad()
def test_the_stem_hands_out_what_timm_computes_after_every_block(img_size):
    model, stem = timm_vit(img_size), Stem(SIZE, img_size)
    load_stem_weights(stem, SIZE, save_to_file(model.state_dict()))
    images = torch.randn(2, 3, *img_size)
    ours = stem(images)
    theirs = model.forward_intermediates(images, return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC")
    assert len(ours) == 5
    for z, (patches, prefix) in zip(ours[1:], theirs, strict=True):
        torch.testing.assert_close(z, torch.cat((prefix, patches), dim=1))


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save_to_file(state, name="vit.safetensors"):
    save_file({key: value.contiguous() for key, value in state.items()}, name)
    return name


def test_the_stem_has_no_final_norm_and_epsilon_1e_minus_6():
    stem = Stem(SIZE, (48, 64))
    assert not any(key.startswith(("vit.norm.", "vit.head.")) for key in stem.state_dict())
    assert {module.eps for module in stem.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize("name", STEMS)
def test_the_papers_stems_have_the_sizes_timm_gives_them(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert STEMS[name] == StemSize(model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads)


def test_any_plain_timm_vit_of_patch_16_may_be_a_stem():
    assert stem_size("vit_tiny_patch16_384.augreg_in21k_ft_in1k") == StemSize(192, 12, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_348.augreg_in21k_ft_in1k", f"is no timm model; did you mean '{TIMM_NAME}'"),
        ("vit_base_patch14_dinov2.lvd142m", "is no ViT with patch 16"),
        ("resnet18.a1_in1k", "is no ViT with patch 16"),
        ("vit_base_patch16_clip_224.openai", r"no plain ViT.*norm_pre"),
        ("deit3_base_patch16_384.fb_in1k", r"no plain ViT.*ls1"),
    ],
)
def test_models_that_are_no_plain_vit_are_refused_with_the_reason(name, message):
    with pytest.raises(UsageError, match=message):
        stem_size(name)


def test_a_file_for_another_size_has_its_position_embedding_resampled_as_timm_does():
    state = timm_vit((48, 48)).state_dict()
    stem = Stem(SIZE, (64, 80))
    load_stem_weights(stem, SIZE, save_to_file(state))
    other = timm_vit((64, 80))
    other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, other))
    torch.testing.assert_close(stem.vit.pos_embed, other.pos_embed)


def test_a_pytorch_file_serves_as_well():
    state = timm_vit().state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, "vit.pth")
    stem = Stem(SIZE, (48, 64))
    load_stem_weights(stem, SIZE, "vit.pth")
    assert torch.equal(stem.vit.blocks[3].mlp.fc2.weight, state["blocks.3.mlp.fc2.weight"])


def test_pretrained_weights_come_from_timm_without_its_classifier(monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        return timm_vit(num_classes=0)

    monkeypatch.setattr(stem_weights_module.timm, "create_model", create_model)
    stem = Stem(SIZE, (48, 64))
    load_stem_weights(stem, TIMM_NAME, "pretrained")
    assert asked == {"name": TIMM_NAME, "pretrained": True, "num_classes": 0}
    assert stem.vit.cls_token.shape == (1, 1, 24)


def test_pretrained_weights_that_cannot_be_had_are_one_line_with_the_ways_out(monkeypatch):
    def no_network(name, **options):
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub\nand more")

    monkeypatch.setattr(stem_weights_module.timm, "create_model", no_network)
    with pytest.raises(SakError, match=f"{TIMM_NAME} are neither.*random:SEED") as caught:
        load_stem_weights(Stem(SIZE, (48, 64)), TIMM_NAME, "pretrained")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        (SIZE, "no pretrained weights for StemSize"),
        ("vit_base_patch16_384", "spell out the weights' tag"),
        ("vit_base_patch16_384.nosuch", "Invalid pretrained tag"),
    ],
)
def test_pretrained_needs_a_name_with_a_tag_that_exists(stem, message):
    with pytest.raises(UsageError, match=message):
        load_stem_weights(Stem(SIZE, (48, 64)), stem, "pretrained")


def spoiled(change):
    state = timm_vit().state_dict()
    change(state)
    return save_to_file(state, "spoiled.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("cls_token"), "keys do not fit the stem, such as cls_token"),
        (lambda state: state.update({"blocks.4.norm1.weight": torch.ones(24)}), r"blocks\.4\.norm1\.weight"),
        (lambda state: state.update({"cls_token": torch.ones(1, 1, 8)}), r"cls_token is \(1, 1, 8\), the stem needs"),
        (lambda state: state.update({"pos_embed": torch.ones(1, 8, 24)}), "7 patches, no square grid"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_its_keys(change, message):
    with pytest.raises(SakError, match=rf"spoiled\.safetensors: .*{message}"):
        load_stem_weights(Stem(SIZE, (48, 64)), SIZE, spoiled(change))


def test_a_missing_file_is_named():
    with pytest.raises(SakError, match=r"nowhere\.pth: no such weights file"):
        load_stem_weights(Stem(SIZE, (48, 64)), SIZE, "nowhere.pth")


def test_random_weights_follow_their_own_seed_whatever_the_other_parts():
    def stem(weights, seed, **options):
        config = StudentConfig(image_size=(48, 64), stem=SIZE, weights=weights, **options)
        return build_student(config, seed=seed).stem.state_dict()

    first = stem("random:7", 0)
    for other in (stem("random:7", 1), stem("random:7", 0, teachers={"a": 8}, tasks={"depth": 1})):
        assert all(torch.equal(value, other[key]) for key, value in first.items())
    assert not torch.equal(first["vit.pos_embed"], stem("random:8", 0)["vit.pos_embed"])


def test_building_leaves_the_global_generator_alone(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_student(tiny)
    assert torch.equal(torch.rand(3), expected)
