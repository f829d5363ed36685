"""Model strings: which library, which architecture, which weights tag. Imports neither torch nor a library."""

from dataclasses import dataclass

from sak.errors import UsageError

FORMS = (
    "timm/<model>.<tag>, open_clip/<arch>/<tag>, segment_anything/<vit_b|vit_l|vit_h>, demo/<dino|clip|sam|stem>, "
    "custom:<module>:<builder>"
)


@dataclass(frozen=True)
class ModelName:
    """A parsed model string; `tag` is empty where none was given, a builder's name for custom models."""

    library: str
    architecture: str
    tag: str
    text: str

    @property
    def short(self) -> str:
        """The name a teacher gets where none is given."""
        return self.tag if self.library == "custom" else self.architecture


def parse_model(text: str) -> ModelName:
    """Take a model string apart; UsageError where it has none of the known forms."""
    if text.startswith("custom:"):
        module, _, builder = text.removeprefix("custom:").partition(":")
        if module and builder:
            return ModelName("custom", module, builder, text)
    library, _, rest = text.partition("/")
    if library == "timm" and rest and "/" not in rest:
        architecture, _, tag = rest.partition(".")
        return ModelName(library, architecture, tag, text)
    if library == "open_clip" and rest:
        architecture, _, tag = rest.partition("/")
        return ModelName(library, architecture, tag, text)
    if library in ("segment_anything", "demo") and rest:
        return ModelName(library, rest, "", text)
    raise UsageError(f"{text!r} is no teacher model; write {FORMS}, or a name that `sak-cli teachers` lists")
