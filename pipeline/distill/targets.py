"""Where distillation's targets come from: the cache, live teachers, or some of either; rep_sim on held-out images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from pipeline.distill.recipe import DistillConfig
from pipeline.storage.location import MissingFileError
from pipeline.train.distillation import Scales, TeacherLevels, own_units
from sak.errors import UsageError, nearest
from sak.losses.distillation import image_similarities
from sak.teachers.recipe import TeacherRecipe

LIVE = ("model", "weights_sha256", "levels")  # a resumed run must find the same: more would refuse older runs


@dataclass(frozen=True)
class TargetSource:
    """The cache that gives views and (with `read_features`) features, and the teachers that run live, if any do.

    `recipes` say how each of `teachers` is built again, for what comes after distillation.
    """

    cache: FeatureCache
    teachers: Mapping[str, TeacherLevels]
    live: LiveTeachers | None
    read_features: bool
    recipes: Mapping[str, TeacherRecipe]
    fresh_views: bool

    def describe(self) -> dict[str, Any]:
        """What is read, for `run.json`."""
        read = self.cache.describe()
        if not self.read_features:
            read["columns"] = []
        if self.fresh_views:
            read["views"] = "fresh each epoch"
        described = self.live.describe() if self.live is not None else {}
        random = [name for name, facts in described.items() if facts["random"] and name not in read["random"]]
        live = {name: {key: facts[key] for key in LIVE} for name, facts in described.items()}
        return {**read, "random": [*read["random"], *random], "live": live}


def open_targets(config: DistillConfig, device: torch.device) -> TargetSource:
    """The targets as asked for; one-line errors where a teacher, a level, a spec or the data is not there."""
    if device.type == "cuda":  # as in extraction: fp32 means it, and a student is the same beside live teachers or none
        torch.backends.cudnn.allow_tf32 = False
    spec = load_spec(config.spec) if config.spec is not None else None
    names = list(config.teachers or (spec.teachers if spec is not None else _all_teachers(config.cache)))
    live_names = _live_names(config, names)
    if config.fresh_views and len(live_names) < len(names):
        raise UsageError(
            "--fresh-views: the cache has features of its own views alone; run every teacher live (--online)"
        )
    cached = [name for name in names if name not in live_names]
    opened = cached or live_names or None  # views come from the cache also where no features do
    cache = FeatureCache.open(
        config.cache, opened, config.levels, spec=spec, allow_partial=config.allow_partial, views=config.views
    )
    cache = located(cache, config.data, "--data")
    live = {name: _start_live(config, cache, spec, name, device) for name in live_names}
    teachers = _levels_in_order(cache, live, names)
    recipes = {
        name: replace(_recipe(config, cache, spec, name, live.get(name)), levels=levels.wanted)
        for name, levels in teachers.items()
    }
    live_teachers = LiveTeachers(live) if live else None
    return TargetSource(cache, teachers, live_teachers, bool(cached), recipes, config.fresh_views)


def _all_teachers(cache: str) -> list[str]:
    return sorted({column.teacher for column in Cache.open(cache).columns})


def _levels_in_order(
    cache: FeatureCache, live: Mapping[str, LiveTeacher], names: Sequence[str]
) -> dict[str, TeacherLevels]:
    """The levels of all teachers, in the order of `names`, which decides that of the student's parts."""
    levels = {}
    for name in names:
        if name in live:
            levels[name] = TeacherLevels(live[name].teacher.width, live[name].teacher.levels, live[name].wanted)
        else:
            teacher = name if name in cache.teachers else name.rpartition("-")[0]  # named with its column's key
            info = cache.teachers[teacher]
            levels[teacher] = TeacherLevels(info.width, tuple(info.document["levels"]), info.levels)
    return levels


def _live_names(config: DistillConfig, names: Sequence[str]) -> list[str]:
    """The teachers that run live, in the order of all."""
    if config.online and config.teachers_online:
        raise UsageError("--online runs every teacher live, --teachers-online some of them: give one of them")
    for name in config.teachers_online:
        if name not in names:
            raise UsageError(f"--teachers-online: no teacher {name!r} here{nearest(name, names)}")
    return [name for name in names if config.online or name in config.teachers_online]


def _start_live(
    config: DistillConfig, cache: FeatureCache, spec: CacheSpec | None, name: str, device: torch.device
) -> LiveTeacher:
    if spec is not None and name in spec.teachers:
        return live_from_spec(spec, name, config.levels, cache, device)
    return live_from_manifest(manifest_of(config.cache, name), config.levels, device)


def _recipe(
    config: DistillConfig, cache: FeatureCache, spec: CacheSpec | None, name: str, live: LiveTeacher | None
) -> TeacherRecipe:
    """The teacher as its spec has it where it runs live, or the manifest of its column."""
    if live is not None and spec is not None and name in spec.teachers:
        recipe = spec.recipe(name)
    else:
        reader = cache.readers.get(name)
        manifest = reader.columns[0].manifest if reader is not None else manifest_of(config.cache, name)
        recipe = replace(manifest.recipe, name=name)
    return recipe if live is None else recipe.identified(live.teacher.recipe)


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


def open_held_out(path: str, data: str | None, targets: TargetSource) -> FeatureCache:
    """The cache that rep_sim is measured on; UsageError where its teachers are others than those of the training."""
    wanted = {name: levels.wanted for name, levels in targets.teachers.items()}
    held_out = located(FeatureCache.open(path, list(wanted), wanted), data, "--val-data")
    policy, size = held_out.view_policy, targets.cache.view_policy.size
    if policy.kind != "resize" or policy.size != size:
        raise UsageError(
            f"{path}: its views are {policy.kind} of {policy.size}; rep_sim is measured on whole images, extract them "
            f"with views {{kind: resize, size: {list(size)}}}"
        )
    for name in wanted:
        if name in targets.cache.teachers:
            _check_same_teacher(path, held_out, targets.cache, name)
    return held_out


def _check_same_teacher(path: str, held_out: FeatureCache, cache: FeatureCache, name: str) -> None:
    trained, measured = (reader.teachers[name].document["teacher"] for reader in (cache, held_out))
    differing = explain_difference(trained, measured)
    if differing:
        listed = "; ".join(f"{field}: {before!r} and {now!r}" for field, before, now in differing)
        raise UsageError(f"{path}: {name} is another teacher than the one trained with: {listed}; extract it again")


BATCH = 32
"""Images of a rank in a forward of the measurement."""


@torch.no_grad()
def mean_similarities(
    cache: FeatureCache, accelerator: Accelerator, workers: int, standardised: Scales, model: nn.Module, step: int
) -> Mapping[str, float]:
    """rep_sim on held-out images (Table 3's row): how like each teacher's maps the student's are.

    Map cosine after the loss's own resize, the mean over view 0's images: by teacher and level, and of all. Every image
    counts once, whatever the number of ranks. A student of `standardised` targets is measured in its teachers' own
    units.
    """
    del step
    ranks, pin = accelerator.num_processes, accelerator.device.type == "cuda"
    order = ReadingOrder(
        BATCH * ranks, block=cache.block, shuffle=False, drop_last=False, rank=accelerator.process_index, ranks=ranks
    )
    features = FeatureBatches(cache, order, pin=pin)
    wanted = (WantedViews(features.part(0, number).samples.tolist(), 0, 0) for number in range(features.batches_in(0)))
    images = load_batches(ViewDataset(cache.sample_table, cache.view_policy), wanted, workers=workers, pin=pin)
    totals: dict[str, torch.Tensor] = {}
    for encoded in features:
        batch = join(next(images), encoded, accelerator.device)
        counted = torch.from_numpy(encoded.mask).to(accelerator.device)  # not what fills the last batch up
        output = model(batch.inputs, tasks=())
        for teacher, targets in batch.targets.items():
            answers = own_units(output.teachers[teacher], standardised.get(teacher))
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
