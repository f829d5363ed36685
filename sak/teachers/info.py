"""What is known of a named teacher before any library is imported."""

from dataclasses import dataclass

from sak.named import demo_weights
from sak.teachers.hub import OPEN_CLIP_FILES, SAM_URLS, TIMM_FILES, HubFiles, PublishedFile, UrlFile
from sak.teachers.names import parse_model

_OPEN_CLIP_PLACES = {
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


@dataclass(frozen=True)
class TeacherInfo:
    """One named teacher.

    `parameters` are those a teacher with the default levels holds for a 384x384 view: embeddings and blocks, no head,
    final norm or neck. `input_size` is what the tower sees of that view: SAM's square is 1024.
    """

    name: str
    model: str
    licence: str
    size: str
    width: int
    depth: int
    patch: int
    parameters: int
    layer_norm_eps: float
    levels: tuple[int, ...]
    input_size: int

    @property
    def library(self) -> str:
        """timm, open_clip, segment_anything or demo."""
        return parse_model(self.model).library

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of its maps for a 384x384 view."""
        return self.input_size // self.patch, self.input_size // self.patch

    def published(self) -> PublishedFile:
        """Where its weights are published."""
        parsed = parse_model(self.model)
        if parsed.library == "demo":
            return demo_weights(parsed.architecture)
        if parsed.library == "segment_anything":
            return UrlFile(SAM_URLS[parsed.architecture])
        if parsed.library == "open_clip":
            return HubFiles(_OPEN_CLIP_PLACES[self.model], OPEN_CLIP_FILES)
        return HubFiles(self.model.replace("_clip_quickgelu_", "_clip_"), TIMM_FILES)

    def as_dict(self) -> dict[str, object]:
        """The row as JSON."""
        return {
            "name": self.name,
            "library": self.library,
            "model": self.model,
            "licence": self.licence,
            "size": self.size,
            "width": self.width,
            "depth": self.depth,
            "patch": self.patch,
            "levels": list(self.levels),
            "input_size": self.input_size,
            "grid": list(self.grid),
            "parameters": self.parameters,
            "layer_norm_eps": self.layer_norm_eps,
        }
