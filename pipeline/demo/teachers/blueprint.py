"""The demo's own teachers: `demo/<name>`, timm's architectures at small size with weights that the package holds."""

from dataclasses import dataclass

from pipeline.demo.weights.shipped import LICENCE, demo_model, shipped_file
from sak.errors import UsageError
from sak.teachers.hub import PublishedFile
from sak.teachers.preprocess import IMAGENET
from sak.teachers.timm_teacher import TimmBlueprint, TimmSamBlueprint
from sak.teachers.tower import Blueprint, TowerRequest
from sak.teachers.weights import State

OVERRIDES: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Shipped(Blueprint):
    """What all shipped models share: the file has the tower's own names."""

    def published(self) -> PublishedFile:
        """See Blueprint."""
        return shipped_file(self.request.name.architecture)

    def rename(self, state: State) -> State:
        """See Blueprint; the names are the tower's already."""
        return state


@dataclass(frozen=True, kw_only=True)
class DemoBlueprint(_Shipped, TimmBlueprint):
    """A plain ViT of the demo."""


@dataclass(frozen=True, kw_only=True)
class DemoSamBlueprint(_Shipped, TimmSamBlueprint):
    """The demo's SamViT."""


def demo_blueprint(request: TowerRequest) -> TimmBlueprint:
    """The blueprint of `demo/<name>`; UsageError for a name that is not shipped."""
    model = demo_model(request.name.architecture)
    square = model.window is not None
    native = (model.side, model.side)
    if request.name.tag:
        raise UsageError(f"{request.name.text}: demo models have no tags, write demo/{model.name}")
    return (DemoSamBlueprint if square else DemoBlueprint)(
        request=TowerRequest(request.name, request.image_size, request.input_size, model.overrides),
        native_size=native,
        input_size=request.input_size or (native if square else request.image_size),
        normalization=IMAGENET,
        licence=LICENCE,
        square=square,
        architecture=model.architecture,
        source=None,
    )
