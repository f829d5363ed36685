"""The teachers known by name: exact weights, licence, sizes, and where the weights are published.

Importing this imports neither torch nor a library. Numbers are constants, checked by tests against built models.
Licences are those of the weights as their publishers state them: OpenAI's repository and open_clip's releases are MIT
where timm's table says apache-2.0 for its conversions.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sak.errors import SakError, UsageError, demo_weights, nearest
from sak.teachers.recipe import Size, TeacherFacts, TeacherRecipe, as_size, parse_model

TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SAM_URLS = {
    "vit_b": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    "vit_l": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
    "vit_h": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
}
OFFLINE_HINT = "or pass weights=FILE, or weights='random:SEED' for a test"


class PublishedFile(Protocol):
    """Where weights are published: on the hub, behind a URL, in an installed package."""

    def local(self) -> Path | None:
        """The file if it is on this machine; never asks the network."""

    def fetch(self, model: str) -> Path:
        """The file, downloaded if need be; SakError, which names `model`, where it cannot be had."""


@contextmanager
def _without_warnings(library: str) -> Iterator[None]:
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True)
class HubFiles:
    """Files of a Hugging Face repository, the preferred first; one of them holds the weights."""

    repository: str
    filenames: tuple[str, ...]

    def local(self) -> Path | None:
        """The file in the local cache (HF_HOME, HF_HUB_CACHE); never asks the network."""
        from huggingface_hub import try_to_load_from_cache

        for filename in self.filenames:
            cached = try_to_load_from_cache(self.repository, filename)
            if isinstance(cached, str):
                return Path(cached)
        return None

    def fetch(self, model: str) -> Path:
        """The cached file, else the file downloaded; SakError where neither can be had."""
        return self.local() or self._download(model)

    def _download(self, model: str) -> Path:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        reason = f"it has none of {', '.join(self.filenames)}"
        for filename in self.filenames:
            try:
                with _without_warnings("huggingface_hub"):  # a pair for every attempt; ours is one line
                    return Path(hf_hub_download(self.repository, filename))
            except LocalEntryNotFoundError:  # also an EntryNotFoundError, but the network is what is missing
                reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
                break
            except EntryNotFoundError:
                continue
            except HfHubHTTPError as error:
                reason = str(error).strip().splitlines()[0]
                break
        raise SakError(
            f"{model}: weights of {self.repository} are not in {constants.HF_HUB_CACHE} and could not be fetched "
            f"({reason}); run `hf download {self.repository}` where there is a network, {OFFLINE_HINT}"
        )


@dataclass(frozen=True)
class UrlFile:
    """One file behind a URL, kept where torch.hub keeps checkpoints."""

    url: str

    @property
    def path(self) -> Path:
        """Where torch.hub keeps it: $TORCH_HOME/hub/checkpoints."""
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118 (may hold ~ and variables)
        return Path(os.path.expandvars(home)).expanduser() / "hub" / "checkpoints" / self.url.rsplit("/", 1)[-1]

    def local(self) -> Path | None:
        """The file in the local cache; never asks the network."""
        return self.path if self.path.is_file() else None

    def fetch(self, model: str) -> Path:
        """The cached file, else the file downloaded (its name holds the start of its SHA-256, which is checked)."""
        return self.local() or self._download(model)

    def _download(self, model: str) -> Path:
        from urllib.error import URLError

        from torch.hub import HASH_REGEX, download_url_to_file

        match = HASH_REGEX.search(self.path.name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(self.url, str(self.path), match.group(1) if match else None, progress=False)
        except (URLError, RuntimeError, TimeoutError) as error:
            raise SakError(
                f"{model}: {self.path} is not there and {self.url} could not be fetched ({error}); "
                f"put the file there, {OFFLINE_HINT}"
            ) from error
        return self.path


_VIEW = 384  # the side of the images that grids are given for
_TABLE = """
# name, model, size, width, depth, patch, parameters, LayerNorm's epsilon, licence, what the tower sees if not 384x384
# DINOv2 (patch 14), without and with registers
dinov2-s           timm/vit_small_patch14_dinov2.lvd142m                S     384 12 14   21809664 1e-6 apache-2.0
dinov2-b           timm/vit_base_patch14_dinov2.lvd142m                 B     768 12 14   86086656 1e-6 apache-2.0
dinov2-l           timm/vit_large_patch14_dinov2.lvd142m                L    1024 24 14  303710208 1e-6 apache-2.0
dinov2-g           timm/vit_giant_patch14_dinov2.lvd142m                g    1536 40 14 1135493120 1e-6 apache-2.0
dinov2-reg-s       timm/vit_small_patch14_reg4_dinov2.lvd142m           S     384 12 14   21810816 1e-6 apache-2.0
dinov2-reg-b       timm/vit_base_patch14_reg4_dinov2.lvd142m            B     768 12 14   86088960 1e-6 apache-2.0
dinov2-reg-l       timm/vit_large_patch14_reg4_dinov2.lvd142m           L    1024 24 14  303713280 1e-6 apache-2.0
dinov2-reg-g       timm/vit_giant_patch14_reg4_dinov2.lvd142m           g    1536 40 14 1135497728 1e-6 apache-2.0
# DINOv3
dinov3-s           timm/vit_small_patch16_dinov3.lvd1689m               S     384 12 16   21586176 1e-5 dinov3-license
dinov3-s-plus      timm/vit_small_plus_patch16_dinov3.lvd1689m          S+    384 12 16   28682496 1e-5 dinov3-license
dinov3-b           timm/vit_base_patch16_dinov3.lvd1689m                B     768 12 16   85639680 1e-5 dinov3-license
dinov3-l           timm/vit_large_patch16_dinov3.lvd1689m               L    1024 24 16  303077376 1e-5 dinov3-license
dinov3-h-plus      timm/vit_huge_plus_patch16_dinov3.lvd1689m           H+   1280 32 16  840506880 1e-5 dinov3-license
dinov3-7b          timm/vit_7b_patch16_dinov3.lvd1689m                  7B   4096 40 16 6716022784 1e-5 dinov3-license
# SAM, through timm and through segment_anything
sam-b              timm/samvit_base_patch16.sa1b                        B     768 12 16   88883456 1e-5 apache-2.0 1024
sam-l              timm/samvit_large_patch16.sa1b                       L    1024 24 16  307425280 1e-5 apache-2.0 1024
sam-h              timm/samvit_huge_patch16.sa1b                        H    1280 32 16  636107520 1e-5 apache-2.0 1024
segment-anything-b segment_anything/vit_b                               B     768 12 16   88883456 1e-6 apache-2.0 1024
segment-anything-l segment_anything/vit_l                               L    1024 24 16  307425280 1e-6 apache-2.0 1024
segment-anything-h segment_anything/vit_h                               H    1280 32 16  636107520 1e-6 apache-2.0 1024
# CLIP as the authors' released teachers have it: LAION-2B, fine-tuned on ImageNet
clip-b             timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k B     768 12 16   86089728 1e-5 apache-2.0
clip-l             timm/vit_large_patch14_clip_336.laion2b_ft_in12k_in1k L    1024 24 14  303662080 1e-5 apache-2.0
# CLIP by OpenAI (QuickGELU)
clip-openai-b32    timm/vit_base_patch32_clip_quickgelu_224.openai      B     768 12 32   87527424 1e-5 mit
clip-openai-b      timm/vit_base_patch16_clip_quickgelu_224.openai      B     768 12 16   86089728 1e-5 mit
clip-openai-l      timm/vit_large_patch14_clip_quickgelu_224.openai     L    1024 24 14  303662080 1e-5 mit
clip-openai-l-336  timm/vit_large_patch14_clip_quickgelu_336.openai     L    1024 24 14  303662080 1e-5 mit
# CLIP by LAION and DataComp
clip-laion-b       timm/vit_base_patch16_clip_224.laion2b               B     768 12 16   86089728 1e-5 mit
clip-laion-l       timm/vit_large_patch14_clip_224.laion2b              L    1024 24 14  303662080 1e-5 mit
clip-laion-h       timm/vit_huge_patch14_clip_224.laion2b               H    1280 32 14  631368960 1e-5 mit
clip-laion-g       timm/vit_giant_patch14_clip_224.laion2b              g    1408 40 14 1011867008 1e-5 mit
clip-laion-bigg    timm/vit_gigantic_patch14_clip_224.laion2b           G    1664 48 14 1843561088 1e-5 mit
clip-datacomp-b    timm/vit_base_patch16_clip_224.datacompxl            B     768 12 16   86089728 1e-5 mit
clip-datacomp-l    timm/vit_large_patch14_clip_224.datacompxl           L    1024 24 14  303662080 1e-5 mit
# CLIP by Apple (data filtering networks) and Meta (MetaCLIP), QuickGELU
clip-dfn-b         open_clip/ViT-B-16-quickgelu/dfn2b                   B     768 12 16   86089728 1e-5 apple-ascl
clip-dfn-l         timm/vit_large_patch14_clip_quickgelu_224.dfn2b      L    1024 24 14  303662080 1e-5 apple-ascl
clip-dfn-h         timm/vit_huge_patch14_clip_quickgelu_224.dfn5b       H    1280 32 14  631368960 1e-5 apple-ascl
clip-dfn-h-378     timm/vit_huge_patch14_clip_quickgelu_378.dfn5b       H    1280 32 14  631368960 1e-5 apple-ascl
metaclip-b         timm/vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b B     768 12 16   86089728 1e-5 cc-by-nc-4.0
metaclip-l         timm/vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b L    1024 24 14  303662080 1e-5 cc-by-nc-4.0
metaclip-h         timm/vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b H    1280 32 14  631368960 1e-5 cc-by-nc-4.0
# CLIP through open_clip
open-clip-openai-b open_clip/ViT-B-16-quickgelu/openai                  B     768 12 16   86089728 1e-5 mit
open-clip-openai-l open_clip/ViT-L-14-quickgelu/openai                  L    1024 24 14  303662080 1e-5 mit
open-clip-laion-b  open_clip/ViT-B-16/laion2b_s34b_b88k                 B     768 12 16   86089728 1e-5 mit
open-clip-laion-l  open_clip/ViT-L-14/laion2b_s32b_b82k                 L    1024 24 14  303662080 1e-5 mit
open-clip-laion-h  open_clip/ViT-H-14/laion2b_s32b_b79k                 H    1280 32 14  631368960 1e-5 mit
open-clip-datacomp-b open_clip/ViT-B-16/datacomp_xl_s13b_b90k             B     768 12 16   86089728 1e-5 mit
open-clip-datacomp-l open_clip/ViT-L-14/datacomp_xl_s13b_b90k             L    1024 24 14  303662080 1e-5 mit
open-clip-metaclip-b open_clip/ViT-B-16-quickgelu/metaclip_fullcc         B     768 12 16   86089728 1e-5 cc-by-nc-4.0
open-clip-siglip2-b open_clip/ViT-B-16-SigLIP2-384/webli                 B     768 12 16   86087424 1e-6 apache-2.0
# SigLIP and SigLIP 2
siglip-b           timm/vit_base_patch16_siglip_384.webli               B     768 12 16   86087424 1e-6 apache-2.0
siglip-l           timm/vit_large_patch16_siglip_384.webli              L    1024 24 16  303686656 1e-6 apache-2.0
siglip-so400m      timm/vit_so400m_patch14_siglip_384.webli             SO400M 1152 27 14  412984944 1e-6 apache-2.0
siglip2-b          timm/vit_base_patch16_siglip_384.v2_webli            B     768 12 16   86087424 1e-6 apache-2.0
siglip2-l          timm/vit_large_patch16_siglip_384.v2_webli           L    1024 24 16  303686656 1e-6 apache-2.0
siglip2-so400m     timm/vit_so400m_patch16_siglip_384.v2_webli          SO400M 1152 27 16  413016048 1e-6 apache-2.0
siglip2-g          timm/vit_giantopt_patch16_siglip_384.v2_webli        g    1536 40 16 1135326720 1e-6 apache-2.0
# The demo's own, shipped with the package, and the stem that its students start from
demo-dino          demo/dino                                            demo   96 12 14    1471104 1e-6 cc0-1.0
demo-clip          demo/clip                                            demo   96 12 16    1471488 1e-5 cc0-1.0
demo-sam           demo/sam                                             demo   96 12 16    1439200 1e-5 cc0-1.0 192
demo-stem          demo/stem                                            demo   96 12 16    1471392 1e-6 cc0-1.0
# Supervised: ViT (AugReg, the student's own starting points) and DeiT III
vit-s              timm/vit_small_patch16_384.augreg_in21k_ft_in1k      S     384 12 16   21810816 1e-6 apache-2.0
vit-b              timm/vit_base_patch16_384.augreg_in21k_ft_in1k       B     768 12 16   86088960 1e-6 apache-2.0
vit-l              timm/vit_large_patch16_384.augreg_in21k_ft_in1k      L    1024 24 16  303688704 1e-6 apache-2.0
deit3-s            timm/deit3_small_patch16_384.fb_in22k_ft_in1k        S     384 12 16   21819648 1e-6 apache-2.0
deit3-b            timm/deit3_base_patch16_384.fb_in22k_ft_in1k         B     768 12 16   86106624 1e-6 apache-2.0
deit3-l            timm/deit3_large_patch16_384.fb_in22k_ft_in1k        L    1024 24 16  303736832 1e-6 apache-2.0
deit3-h            timm/deit3_huge_patch14_224.fb_in22k_ft_in1k         H    1280 32 14  631448320 1e-6 apache-2.0
"""

_OPEN_CLIP_REPOSITORIES = {
    "open_clip/ViT-B-16-quickgelu/dfn2b": "apple/DFN2B-CLIP-ViT-B-16",
    "open_clip/ViT-B-16-quickgelu/openai": "timm/vit_base_patch16_clip_224.openai",
    "open_clip/ViT-L-14-quickgelu/openai": "timm/vit_large_patch14_clip_224.openai",
    "open_clip/ViT-B-16/laion2b_s34b_b88k": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "open_clip/ViT-L-14/laion2b_s32b_b82k": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "open_clip/ViT-H-14/laion2b_s32b_b79k": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "open_clip/ViT-B-16/datacomp_xl_s13b_b90k": "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    "open_clip/ViT-L-14/datacomp_xl_s13b_b90k": "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    "open_clip/ViT-B-16-quickgelu/metaclip_fullcc": "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    "open_clip/ViT-B-16-SigLIP2-384/webli": "timm/ViT-B-16-SigLIP2-384",
}


def _row(line: str) -> TeacherFacts:
    """A line of the table; the levels are the blocks nearest to the quarters of the depth."""
    cells = line.split()
    name, model, size, *numbers, eps, licence = cells[:9]
    width, depth, patch, parameters = map(int, numbers)
    side = int(cells[9]) if len(cells) > 9 else _VIEW
    levels = tuple(round(depth * quarter / 4) for quarter in (1, 2, 3, 4))
    grid, seen = (side // patch, side // patch), (side, side)
    return TeacherFacts(width, depth, grid, name, model, licence, size, patch, parameters, float(eps), levels, seen)


_ROWS = [_row(line) for line in _TABLE.strip().splitlines() if not line.startswith("#")]

TEACHERS: dict[str, TeacherFacts] = {row.name: row for row in _ROWS}
"""By name, in the order of the table."""

_BY_MODEL = {row.model: row for row in _ROWS}


def list_teachers() -> list[TeacherFacts]:
    """All named teachers, in the order of the table."""
    return list(TEACHERS.values())


def find_teacher(name: str) -> TeacherFacts | None:
    """The row of a name or of a model string; None for other model strings, UsageError for an unknown name."""
    if "/" not in name and ":" not in name and name not in TEACHERS:
        raise UsageError(
            f"no teacher is named {name!r}{nearest(name, TEACHERS)}; a model string has a library in front"
        )
    return TEACHERS.get(name) or _BY_MODEL.get(name)


def teacher_recipe(
    model: str,
    *,
    name: str | None = None,
    weights: str | Path = "pretrained",
    input_size: int | Size | None = None,
    **options: Any,
) -> TeacherRecipe:
    """The recipe of a model string, or of a name in the table; `options` are further fields of `TeacherRecipe`.

    `name` is by default the one in the table, else the architecture's. UsageError for what no teacher can be.
    """
    known = find_teacher(model)
    text = known.model if known else model
    parsed = parse_model(text)
    own = known.name if known else parsed.tag if parsed.library == "custom" else parsed.architecture
    size = None if input_size is None else as_size(input_size, "input_size")
    return TeacherRecipe(name or own, text, str(weights), size, **options)


def published_file(teacher: TeacherFacts) -> PublishedFile:
    """Where the weights of a named teacher are published."""
    library, architecture, _ = parse_model(teacher.model)
    if library == "demo":
        return demo_weights(architecture)
    if library == "segment_anything":
        return UrlFile(SAM_URLS[architecture])
    if library == "open_clip":
        return HubFiles(_OPEN_CLIP_REPOSITORIES[teacher.model], OPEN_CLIP_FILES)
    return HubFiles(teacher.model.replace("_clip_quickgelu_", "_clip_"), TIMM_FILES)


def weights_available(teacher: TeacherFacts) -> bool:
    """Whether its pretrained weights are on this machine; looks into the local caches alone, never at the network."""
    return published_file(teacher).local() is not None
