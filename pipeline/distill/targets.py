"""Where distillation's targets come from: the cache, live teachers, or some of either."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.cache.folder import Cache
from pipeline.cache.key import explain_difference
from pipeline.cache.reader.batches import FeatureBatches, ReadingOrder
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.spec import CacheSpec, load_spec
from pipeline.data.distillation import join
from pipeline.data.live_teachers import LiveTeacher, LiveTeachers, live_from_manifest, live_from_spec, manifest_of
from pipeline.data.loading import ViewDataset, WantedViews, load_batches
from pipeline.storage.location import MissingFileError
from pipeline.train.distillation import TaughtBy, own_units
from sak.errors import UsageError, nearest
from sak.losses.distillation import image_similarities
from sak.losses.standardise import Standardisation
from sak.teachers.recipe import TeacherRecipe

Levels = Sequence[int] | None
LIVE = ("model", "weights_sha256", "levels")  # a resumed run must find the same: more would refuse older runs


class Asked(Protocol):
    """What a distillation's configuration says of its targets."""

    cache: str
    teachers: tuple[str, ...] | None
    levels: tuple[int, ...] | None
    spec: str | None
    data: str | None
    online: bool
    teachers_online: tuple[str, ...]
    allow_partial: bool
    views: int | None
    fresh_views: bool


@dataclass(frozen=True)
class TargetSource:
    """The cache that gives views and (with `read_features`) features, and the teachers that run live, if any do.

    `recipes` say how each teacher is built again, for what comes after distillation.
    """

    cache: FeatureCache
    taught_by: Mapping[str, TaughtBy]
    live: LiveTeachers | None = None
    read_features: bool = True
    recipes: Mapping[str, TeacherRecipe] = field(default_factory=dict)
    fresh_views: bool = False

    def describe(self) -> dict[str, Any]:
        """What is read, for `run.json`."""
        read = self.cache.describe()
        if not self.read_features:
            read["columns"] = []
        if self.fresh_views:
            read["views"] = "fresh each epoch"
        random = [name for name in (self.live.random if self.live is not None else ()) if name not in read["random"]]
        described = self.live.describe() if self.live is not None else {}
        told = {name: {each: about[each] for each in LIVE} for name, about in described.items()}
        return {**read, "random": [*read["random"], *random], "live": told}


def open_targets(asked: Asked, device: torch.device) -> TargetSource:
    """The targets as asked; one-line errors where a teacher, a level, a spec or the data is not there."""
    if device.type == "cuda":  # as in extraction: fp32 means it, and a student is the same beside live teachers or none
        torch.backends.cudnn.allow_tf32 = False
    spec = load_spec(asked.spec) if asked.spec is not None else None
    names = list(asked.teachers or (spec.teachers if spec is not None else _names(asked.cache)))
    live = _live(asked, names)
    if asked.fresh_views and len(live) < len(names):
        raise UsageError(
            "--fresh-views: the cache has features of its own views alone; run every teacher live (--online)"
        )
    cached = [name for name in names if name not in live]
    opened = cached or live or None
    cache = FeatureCache.open(
        asked.cache, opened, asked.levels, spec=spec, allow_partial=asked.allow_partial, views=asked.views
    )
    cache = located(cache, asked.data, "--data")
    stored = {name: _stored(cache, name) for name in cache.readers if name not in live}
    if not live:
        return TargetSource(cache, stored, recipes={name: _recipe(asked, cache, None, name, stored) for name in stored})
    running = {name: _run(asked, cache, spec, name, device) for name in live}
    told = {name: TaughtBy(each.teacher.width, each.teacher.levels, each.wanted) for name, each in running.items()}
    known = stored | told
    order = [name if name in known else name.rpartition("-")[0] for name in names]
    taught = {name: known[name] for name in order}
    recipes = {name: _recipe(asked, cache, spec if name in live else None, name, taught) for name in taught}
    recipes |= {name: recipes[name].identified(each.teacher.recipe) for name, each in running.items()}
    recipes = {name: replace(recipe, levels=taught[name].wanted) for name, recipe in recipes.items()}
    return TargetSource(cache, taught, LiveTeachers(running), bool(cached), recipes, asked.fresh_views)


def _live(asked: Asked, names: Sequence[str]) -> list[str]:
    """The teachers that run live, in the order of all."""
    if asked.online and asked.teachers_online:
        raise UsageError("--online runs every teacher live, --teachers-online some of them: give one of them")
    for name in asked.teachers_online:
        if name not in names:
            raise UsageError(f"--teachers-online: no teacher {name!r} here{nearest(name, names)}")
    return [name for name in names if asked.online or name in asked.teachers_online]


def _names(cache: str) -> list[str]:
    return sorted({column.teacher for column in Cache.open(cache).columns})


def _run(asked: Asked, cache: FeatureCache, spec: CacheSpec | None, name: str, device: torch.device) -> LiveTeacher:
    if spec is not None and name in spec.teachers:
        return live_from_spec(spec, name, asked.levels, cache, device)
    return live_from_manifest(manifest_of(asked.cache, name), asked.levels, device)


def _recipe(
    asked: Asked, cache: FeatureCache, spec: CacheSpec | None, name: str, taught: Mapping[str, TaughtBy]
) -> TeacherRecipe:
    """The teacher as its spec has it, or the manifest of its column."""
    wanted = taught[name].wanted
    if spec is not None and name in spec.teachers:
        return replace(spec.recipe(name), levels=wanted)
    reader = cache.readers.get(name)
    manifest = reader.columns[0].manifest if reader is not None else manifest_of(asked.cache, name)
    return replace(manifest.recipe, name=name, levels=wanted)


def _stored(cache: FeatureCache, name: str) -> TaughtBy:
    info = cache.teachers[name]
    return TaughtBy(info.width, tuple(info.document["levels"]), info.levels)


def located(cache: FeatureCache, data: str | None, flag: str) -> FeatureCache:
    """The cache with its images where they are: at `data`, or where they were.

    UsageError, which names `flag`, where nothing is there; StaleIndexError where it is other data.
    """
    try:
        if data is not None:
            return replace(cache, sample_table=cache.sample_table.relocated(data))
        for index in cache.sample_table.indices.values():
            index.check_shards()
    except MissingFileError as error:
        raise UsageError(f"the images of {cache.cache} are missing: {error}; {flag} says where they are now") from error
    return cache


def open_held_out(place: str, data: str | None, targets: TargetSource) -> FeatureCache:
    """The cache that rep_sim is measured on; UsageError where its teachers are others than those of the training."""
    wanted = {name: taught.wanted for name, taught in targets.taught_by.items()}
    held_out = located(FeatureCache.open(place, list(wanted), wanted), data, "--val-data")
    policy = held_out.view_policy
    if policy.kind != "resize" or policy.size != targets.cache.view_policy.size:
        size = targets.cache.view_policy.size
        raise UsageError(
            f"{place}: its views are {policy.kind} of {policy.size}; rep_sim is measured on whole images, extract them "
            f"with views {{kind: resize, size: {list(size)}}}"
        )
    for name in wanted:
        _same_teacher(place, held_out, targets, name)
    return held_out


def _same_teacher(place: str, held_out: FeatureCache, targets: TargetSource, name: str) -> None:
    if name not in targets.cache.teachers:
        return
    trained, measured = (each.teachers[name].document["teacher"] for each in (targets.cache, held_out))
    differing = explain_difference(trained, measured)
    if differing:
        told = "; ".join(f"{field}: {here!r} and {there!r}" for field, here, there in differing)
        raise UsageError(f"{place}: {name} is another teacher than the one trained with: {told}; extract it again")


# rep_sim on held-out images: how like each teacher's maps the student's are (Table 3's row).

BATCH = 32


@torch.no_grad()
def mean_similarities(
    cache: FeatureCache,
    accelerator: Accelerator,
    workers: int,
    model: nn.Module,
    step: int,
    *,
    standardised: Mapping[str, Sequence[Standardisation]] | None = None,
) -> Mapping[str, float]:
    """Map cosine after the loss's own resize, the mean over view 0's images: by teacher and level, and of all.

    Every image counts once, whatever the number of processes. A student of `standardised` targets is measured in its
    teachers' own units.
    """
    del step
    ranks = accelerator.num_processes
    order = ReadingOrder(
        BATCH * ranks, block=cache.block, shuffle=False, drop_last=False, rank=accelerator.process_index, ranks=ranks
    )
    features = FeatureBatches(cache, order, pin=accelerator.device.type == "cuda")
    wanted = (WantedViews(features.part(0, number).samples.tolist(), 0, 0) for number in range(features.batches_in(0)))
    dataset = ViewDataset(cache.sample_table, cache.view_policy)
    images = load_batches(dataset, wanted, workers=workers, pin=accelerator.device.type == "cuda")
    totals: dict[str, torch.Tensor] = {}
    for encoded in features:
        batch = join(next(images), encoded, accelerator.device)
        counted = torch.from_numpy(encoded.mask).to(accelerator.device)
        output = model(batch.inputs, tasks=())
        for teacher, targets in batch.targets.items():
            answers = own_units(output.teachers[teacher], (standardised or {}).get(teacher))
            similar = image_similarities(answers, targets)[counted].double()
            totals[teacher] = totals.get(teacher, similar.new_zeros(similar.shape[1])) + similar.sum(0)
        batch.release()
    count = len(cache.samples_in(0))
    summed = {teacher: accelerator.reduce(total, "sum") / count for teacher, total in totals.items()}
    values = {
        f"rep_sim/{teacher}/level{block}": float(similar)
        for teacher, levels in summed.items()
        for block, similar in zip(cache.readers[teacher].levels, levels, strict=True)
    }
    means = {f"rep_sim/{teacher}": float(levels.mean()) for teacher, levels in summed.items()}
    return {"rep_sim": sum(means.values()) / len(means), **means, **values}
