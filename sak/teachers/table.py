"""The table of named teachers. Numbers are constants, checked by tests against built models.

Licences are those of the weights as their publishers state them: OpenAI's repository and open_clip's releases are MIT
where timm's table says apache-2.0 for its conversions.
"""

from sak.teachers.info import TeacherInfo

_APACHE, _MIT, _DINOV3, _CC_BY_NC, _APPLE = "apache-2.0", "mit", "dinov3-license", "cc-by-nc-4.0", "apple-ascl"
_CC0 = "cc0-1.0"


def _row(  # noqa: PLR0913 (a row of the table below)
    name: str,
    model: str,
    licence: str,
    size: str,
    sizes: tuple[int, int, int],
    parameters: int,
    eps: float,
    *,
    own_levels: tuple[int, ...] = (),
    input_size: int = 384,
) -> TeacherInfo:
    """`sizes` are width, depth and patch; levels are quarters of the depth where it has them."""
    width, depth, patch = sizes
    levels = own_levels or tuple(depth * quarter // 4 for quarter in (1, 2, 3, 4))
    return TeacherInfo(name, model, licence, size, width, depth, patch, parameters, eps, levels, input_size)


ROWS = (
    # DINOv2 (patch 14), without and with registers
    _row("dinov2-s", "timm/vit_small_patch14_dinov2.lvd142m", _APACHE, "S", (384, 12, 14), 21_809_664, 1e-6),
    _row("dinov2-b", "timm/vit_base_patch14_dinov2.lvd142m", _APACHE, "B", (768, 12, 14), 86_086_656, 1e-6),
    _row("dinov2-l", "timm/vit_large_patch14_dinov2.lvd142m", _APACHE, "L", (1024, 24, 14), 303_710_208, 1e-6),
    _row("dinov2-g", "timm/vit_giant_patch14_dinov2.lvd142m", _APACHE, "g", (1536, 40, 14), 1_135_493_120, 1e-6),
    _row("dinov2-reg-s", "timm/vit_small_patch14_reg4_dinov2.lvd142m", _APACHE, "S", (384, 12, 14), 21_810_816, 1e-6),
    _row("dinov2-reg-b", "timm/vit_base_patch14_reg4_dinov2.lvd142m", _APACHE, "B", (768, 12, 14), 86_088_960, 1e-6),
    _row("dinov2-reg-l", "timm/vit_large_patch14_reg4_dinov2.lvd142m", _APACHE, "L", (1024, 24, 14), 303_713_280, 1e-6),
    _row(
        "dinov2-reg-g", "timm/vit_giant_patch14_reg4_dinov2.lvd142m", _APACHE, "g", (1536, 40, 14), 1_135_497_728, 1e-6
    ),
    # DINOv3
    _row("dinov3-s", "timm/vit_small_patch16_dinov3.lvd1689m", _DINOV3, "S", (384, 12, 16), 21_586_176, 1e-5),
    _row(
        "dinov3-s-plus", "timm/vit_small_plus_patch16_dinov3.lvd1689m", _DINOV3, "S+", (384, 12, 16), 28_682_496, 1e-5
    ),
    _row("dinov3-b", "timm/vit_base_patch16_dinov3.lvd1689m", _DINOV3, "B", (768, 12, 16), 85_639_680, 1e-5),
    _row("dinov3-l", "timm/vit_large_patch16_dinov3.lvd1689m", _DINOV3, "L", (1024, 24, 16), 303_077_376, 1e-5),
    _row(
        "dinov3-h-plus", "timm/vit_huge_plus_patch16_dinov3.lvd1689m", _DINOV3, "H+", (1280, 32, 16), 840_506_880, 1e-5
    ),
    _row("dinov3-7b", "timm/vit_7b_patch16_dinov3.lvd1689m", _DINOV3, "7B", (4096, 40, 16), 6_716_022_784, 1e-5),
    # SAM, through timm and through segment_anything
    _row("sam-b", "timm/samvit_base_patch16.sa1b", _APACHE, "B", (768, 12, 16), 88_883_456, 1e-5, input_size=1024),
    _row("sam-l", "timm/samvit_large_patch16.sa1b", _APACHE, "L", (1024, 24, 16), 307_425_280, 1e-5, input_size=1024),
    _row("sam-h", "timm/samvit_huge_patch16.sa1b", _APACHE, "H", (1280, 32, 16), 636_107_520, 1e-5, input_size=1024),
    _row(
        "segment-anything-b", "segment_anything/vit_b", _APACHE, "B", (768, 12, 16), 88_883_456, 1e-6, input_size=1024
    ),
    _row(
        "segment-anything-l", "segment_anything/vit_l", _APACHE, "L", (1024, 24, 16), 307_425_280, 1e-6, input_size=1024
    ),
    _row(
        "segment-anything-h", "segment_anything/vit_h", _APACHE, "H", (1280, 32, 16), 636_107_520, 1e-6, input_size=1024
    ),
    # CLIP as the authors' released teachers have it: LAION-2B, fine-tuned on ImageNet
    _row(
        "clip-b", "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", _APACHE, "B", (768, 12, 16), 86_089_728, 1e-5
    ),
    _row(
        "clip-l",
        "timm/vit_large_patch14_clip_336.laion2b_ft_in12k_in1k",
        _APACHE,
        "L",
        (1024, 24, 14),
        303_662_080,
        1e-5,
    ),
    # CLIP by OpenAI (QuickGELU)
    _row(
        "clip-openai-b32", "timm/vit_base_patch32_clip_quickgelu_224.openai", _MIT, "B", (768, 12, 32), 87_527_424, 1e-5
    ),
    _row(
        "clip-openai-b", "timm/vit_base_patch16_clip_quickgelu_224.openai", _MIT, "B", (768, 12, 16), 86_089_728, 1e-5
    ),
    _row(
        "clip-openai-l",
        "timm/vit_large_patch14_clip_quickgelu_224.openai",
        _MIT,
        "L",
        (1024, 24, 14),
        303_662_080,
        1e-5,
    ),
    _row(
        "clip-openai-l-336",
        "timm/vit_large_patch14_clip_quickgelu_336.openai",
        _MIT,
        "L",
        (1024, 24, 14),
        303_662_080,
        1e-5,
    ),
    # CLIP by LAION and DataComp
    _row("clip-laion-b", "timm/vit_base_patch16_clip_224.laion2b", _MIT, "B", (768, 12, 16), 86_089_728, 1e-5),
    _row("clip-laion-l", "timm/vit_large_patch14_clip_224.laion2b", _MIT, "L", (1024, 24, 14), 303_662_080, 1e-5),
    _row("clip-laion-h", "timm/vit_huge_patch14_clip_224.laion2b", _MIT, "H", (1280, 32, 14), 631_368_960, 1e-5),
    _row("clip-laion-g", "timm/vit_giant_patch14_clip_224.laion2b", _MIT, "g", (1408, 40, 14), 1_011_867_008, 1e-5),
    _row(
        "clip-laion-bigg", "timm/vit_gigantic_patch14_clip_224.laion2b", _MIT, "G", (1664, 48, 14), 1_843_561_088, 1e-5
    ),
    _row("clip-datacomp-b", "timm/vit_base_patch16_clip_224.datacompxl", _MIT, "B", (768, 12, 16), 86_089_728, 1e-5),
    _row("clip-datacomp-l", "timm/vit_large_patch14_clip_224.datacompxl", _MIT, "L", (1024, 24, 14), 303_662_080, 1e-5),
    # CLIP by Apple (data filtering networks) and Meta (MetaCLIP), QuickGELU
    _row("clip-dfn-b", "open_clip/ViT-B-16-quickgelu/dfn2b", _APPLE, "B", (768, 12, 16), 86_089_728, 1e-5),
    _row(
        "clip-dfn-l", "timm/vit_large_patch14_clip_quickgelu_224.dfn2b", _APPLE, "L", (1024, 24, 14), 303_662_080, 1e-5
    ),
    _row(
        "clip-dfn-h", "timm/vit_huge_patch14_clip_quickgelu_224.dfn5b", _APPLE, "H", (1280, 32, 14), 631_368_960, 1e-5
    ),
    _row(
        "clip-dfn-h-378",
        "timm/vit_huge_patch14_clip_quickgelu_378.dfn5b",
        _APPLE,
        "H",
        (1280, 32, 14),
        631_368_960,
        1e-5,
    ),
    _row(
        "metaclip-b",
        "timm/vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b",
        _CC_BY_NC,
        "B",
        (768, 12, 16),
        86_089_728,
        1e-5,
    ),
    _row(
        "metaclip-l",
        "timm/vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b",
        _CC_BY_NC,
        "L",
        (1024, 24, 14),
        303_662_080,
        1e-5,
    ),
    _row(
        "metaclip-h",
        "timm/vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b",
        _CC_BY_NC,
        "H",
        (1280, 32, 14),
        631_368_960,
        1e-5,
    ),
    # CLIP through open_clip
    _row("open-clip-openai-b", "open_clip/ViT-B-16-quickgelu/openai", _MIT, "B", (768, 12, 16), 86_089_728, 1e-5),
    _row("open-clip-openai-l", "open_clip/ViT-L-14-quickgelu/openai", _MIT, "L", (1024, 24, 14), 303_662_080, 1e-5),
    _row("open-clip-laion-b", "open_clip/ViT-B-16/laion2b_s34b_b88k", _MIT, "B", (768, 12, 16), 86_089_728, 1e-5),
    _row("open-clip-laion-l", "open_clip/ViT-L-14/laion2b_s32b_b82k", _MIT, "L", (1024, 24, 14), 303_662_080, 1e-5),
    _row("open-clip-laion-h", "open_clip/ViT-H-14/laion2b_s32b_b79k", _MIT, "H", (1280, 32, 14), 631_368_960, 1e-5),
    _row(
        "open-clip-datacomp-b", "open_clip/ViT-B-16/datacomp_xl_s13b_b90k", _MIT, "B", (768, 12, 16), 86_089_728, 1e-5
    ),
    _row(
        "open-clip-datacomp-l", "open_clip/ViT-L-14/datacomp_xl_s13b_b90k", _MIT, "L", (1024, 24, 14), 303_662_080, 1e-5
    ),
    _row(
        "open-clip-metaclip-b",
        "open_clip/ViT-B-16-quickgelu/metaclip_fullcc",
        _CC_BY_NC,
        "B",
        (768, 12, 16),
        86_089_728,
        1e-5,
    ),
    _row("open-clip-siglip2-b", "open_clip/ViT-B-16-SigLIP2-384/webli", _APACHE, "B", (768, 12, 16), 86_087_424, 1e-6),
    # SigLIP and SigLIP 2
    _row("siglip-b", "timm/vit_base_patch16_siglip_384.webli", _APACHE, "B", (768, 12, 16), 86_087_424, 1e-6),
    _row("siglip-l", "timm/vit_large_patch16_siglip_384.webli", _APACHE, "L", (1024, 24, 16), 303_686_656, 1e-6),
    _row(
        "siglip-so400m",
        "timm/vit_so400m_patch14_siglip_384.webli",
        _APACHE,
        "SO400M",
        (1152, 27, 14),
        412_984_944,
        1e-6,
        own_levels=(7, 14, 20, 27),
    ),
    _row("siglip2-b", "timm/vit_base_patch16_siglip_384.v2_webli", _APACHE, "B", (768, 12, 16), 86_087_424, 1e-6),
    _row("siglip2-l", "timm/vit_large_patch16_siglip_384.v2_webli", _APACHE, "L", (1024, 24, 16), 303_686_656, 1e-6),
    _row(
        "siglip2-so400m",
        "timm/vit_so400m_patch16_siglip_384.v2_webli",
        _APACHE,
        "SO400M",
        (1152, 27, 16),
        413_016_048,
        1e-6,
        own_levels=(7, 14, 20, 27),
    ),
    _row(
        "siglip2-g", "timm/vit_giantopt_patch16_siglip_384.v2_webli", _APACHE, "g", (1536, 40, 16), 1_135_326_720, 1e-6
    ),
    # The demo's own, which `pipeline.demo` ships, and the stem that its students start from
    _row("demo-dino", "demo/dino", _CC0, "demo", (96, 12, 14), 1_471_104, 1e-6),
    _row("demo-clip", "demo/clip", _CC0, "demo", (96, 12, 16), 1_471_488, 1e-5),
    _row("demo-sam", "demo/sam", _CC0, "demo", (96, 12, 16), 1_439_200, 1e-5, input_size=192),
    _row("demo-stem", "demo/stem", _CC0, "demo", (96, 12, 16), 1_471_392, 1e-6),
    # Supervised: ViT (AugReg, the student's own starting points) and DeiT III
    _row("vit-s", "timm/vit_small_patch16_384.augreg_in21k_ft_in1k", _APACHE, "S", (384, 12, 16), 21_810_816, 1e-6),
    _row("vit-b", "timm/vit_base_patch16_384.augreg_in21k_ft_in1k", _APACHE, "B", (768, 12, 16), 86_088_960, 1e-6),
    _row("vit-l", "timm/vit_large_patch16_384.augreg_in21k_ft_in1k", _APACHE, "L", (1024, 24, 16), 303_688_704, 1e-6),
    _row("deit3-s", "timm/deit3_small_patch16_384.fb_in22k_ft_in1k", _APACHE, "S", (384, 12, 16), 21_819_648, 1e-6),
    _row("deit3-b", "timm/deit3_base_patch16_384.fb_in22k_ft_in1k", _APACHE, "B", (768, 12, 16), 86_106_624, 1e-6),
    _row("deit3-l", "timm/deit3_large_patch16_384.fb_in22k_ft_in1k", _APACHE, "L", (1024, 24, 16), 303_736_832, 1e-6),
    _row("deit3-h", "timm/deit3_huge_patch14_224.fb_in22k_ft_in1k", _APACHE, "H", (1280, 32, 14), 631_448_320, 1e-6),
)
