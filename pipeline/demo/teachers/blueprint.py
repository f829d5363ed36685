"""The demo's own teachers: `demo/<name>`, timm's architectures at small size with weights that the package holds."""

from dataclasses import dataclass, replace

from pipeline.demo.weights.shipped import LICENCE, demo_model, shipped_file
from sak.errors import UsageError
from sak.teachers.preprocess import IMAGENET
from sak.teachers.recipe import Size, TeacherRecipe
from sak.teachers.registry import PublishedFile
from sak.teachers.teacher import Blueprint
from sak.teachers.timm_teacher import TimmBlueprint, TimmSamBlueprint
from sak.teachers.weights import State

OVERRIDES: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Shipped(Blueprint):
    """What all shipped models share: the file has the tower's own names."""

    def published(self) -> PublishedFile:
        """See Blueprint."""
        return shipped_file(self.recipe.architecture)

    def rename(self, state: State) -> State:
        """See Blueprint; the names are the tower's already."""
        return state


@dataclass(frozen=True, kw_only=True)
class DemoBlueprint(_Shipped, TimmBlueprint):
    """A plain ViT of the demo."""


@dataclass(frozen=True, kw_only=True)
class DemoSamBlueprint(_Shipped, TimmSamBlueprint):
    """The demo's SamViT."""


def demo_blueprint(recipe: TeacherRecipe, image_size: Size) -> TimmBlueprint:
    """The blueprint of `demo/<name>`; UsageError for a name that is not shipped."""
    model = demo_model(recipe.architecture)
    square = model.window is not None
    native = (model.side, model.side)
    if recipe.tag:
        raise UsageError(f"{recipe.model}: demo models have no tags, write demo/{model.name}")
    return (DemoSamBlueprint if square else DemoBlueprint)(
        recipe=replace(recipe, overrides=model.overrides),
        image_size=image_size,
        native_size=native,
        input_size=recipe.input_size or (native if square else image_size),
        normalization=IMAGENET,
        licence=LICENCE,
        square=square,
        architecture=model.architecture,
        source=None,
    )
