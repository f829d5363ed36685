"""From rows to jobs: what must run, each thing once, named by what decides its outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.ablate.columns import CacheNeed
from pipeline.ablate.stage_settings import (
    CacheSettings,
    EvaluateSettings,
    Settings,
    StageSettings,
    merged,
    only_teachers,
    resolve_spec,
    spec_document,
    stage_settings,
)
from pipeline.ablate.study import Study, StudyRow, is_on, make_rows
from pipeline.cache.key import canonical_json
from pipeline.cache.spec import CacheSpec
from pipeline.data.datasets import task_table
from pipeline.evaluate.results import store_name
from pipeline.finetune.stage import FinetuneConfig
from pipeline.settings import flattened, parse_settings, read_yaml
from sak.errors import UsageError

DIGITS = 12
SEED = "recipe.training.seed"


@dataclass(frozen=True)
class ExtractJob:
    """Fill a cache with what all runs that read it want; one for each cache, spec and data."""

    name: str
    need: CacheNeed
    after: tuple[str, ...] = ()
    stage: str = "extract"


@dataclass(frozen=True)
class TrainJob:
    """One training (or evaluation) of the study.

    `name` is its folder's: the stage and a digest of all that decides the outcome, so that equal runs are one run.
    `after` names the jobs before it; `reads` and `measured_on` are its caches; `start` is the run that it begins from,
    or that it evaluates, which then gets the file `stored`.
    """

    name: str
    stage: str
    settings: StageSettings
    after: tuple[str, ...]
    reads: CacheNeed | None = None
    measured_on: CacheNeed | None = None
    start: str | None = None
    stored: str | None = None


StudyJob = ExtractJob | TrainJob


@dataclass(frozen=True)
class StudyRun:
    """One row under one seed: stage -> the job that does it, in the stages' order."""

    row: StudyRow
    seed: int
    jobs: Mapping[str, str]


@dataclass(frozen=True)
class Work:
    """All runs of a study, and all jobs that they need, each after those before it."""

    runs: tuple[StudyRun, ...]
    jobs: Mapping[str, StudyJob]


def make_work(study: Study, source: str) -> Work:
    """Every row under every seed as jobs; UsageError, one line, for a setting that does not exist or does not fit."""
    rows = make_rows(study, source)
    trainings: dict[str, TrainJob] = {}
    runs = []
    for row in rows:
        for seed in study.seeds:
            chain = _chain(study, row, seed, f"{source}: {row.name}")
            trainings |= {job.name: job for job in chain}
            runs.append(StudyRun(row, seed, {job.stage: job.name for job in chain}))
    jobs = list(trainings.values())
    _check_limits(jobs, source)
    return Work(tuple(runs), _with_extractions(jobs))


def _check_limits(jobs: Sequence[TrainJob], source: str) -> None:
    """UsageError where one cache is to be read up to two limits: a training reads all that is there."""
    limits: dict[str, int | None] = {}
    for need in (job.reads for job in jobs if job.reads is not None):
        if limits.setdefault(need.cache, need.limit) != need.limit:
            raise UsageError(
                f"{source}: extract.limit is {limits[need.cache]} and {need.limit} for one cache, {need.cache}; a "
                "training reads all that is there, so give each limit a cache of its own"
            )


def _chain(study: Study, row: StudyRow, seed: int, source: str) -> list[TrainJob]:
    """The trainings of one row under one seed."""
    settings = dict(row.settings)
    for stage in study.seeded_stages(settings):
        settings[stage] = _seeded(settings[stage], seed, f"{source}: {stage}")
    jobs: list[TrainJob] = []
    if is_on(settings, "distill"):
        jobs.append(_distillation(settings, source))
    if is_on(settings, "finetune"):
        jobs.append(_finetuning(settings, jobs[-1] if jobs else None, source))
        if is_on(settings, "evaluate"):
            jobs.append(_evaluation(settings, jobs[-1], source))
    if not jobs:
        raise UsageError(f"{source}: nothing is trained; leave distill or finetune on")
    return jobs


def _seeded(settings: Mapping[str, Any], seed: int, source: str) -> Settings:
    """One stage with a seed; UsageError where a row, an axis or the base names one, which would count for nothing."""
    if SEED in dict(flattened(settings)):
        raise UsageError(
            f"{source}.{SEED} is decided by the study's seeds; leave it out, or send them elsewhere (seeded)"
        )
    return merged(settings, {SEED: seed})


def _finetuning(settings: Mapping[str, Any], before: TrainJob | None, source: str) -> TrainJob:
    """From the row's distilled student, unless the study names another start."""
    asked = settings["finetune"]
    init = asked.get("init")
    if before is None and init is None:
        raise UsageError(
            f"{source}: nothing is distilled: say where finetune.init starts (imagenet, teacher:NAME, a run)"
        )
    checked = stage_settings("finetune", {**asked, "init": init or ""}, source)
    document = checked.identity()
    spec = checked.flags.get("spec")
    if spec is not None:
        document["spec"] = read_yaml(Path(spec), "a cache spec")
    if before is None or init is not None:
        return TrainJob(job_name("finetune", document), "finetune", checked, ())
    name = job_name("finetune", {**document, "init": before.name})
    # its start is the other run's folder, which the command line gets from the study's folder and not from here
    flags = {name: value for name, value in checked.flags.items() if name != "init"}
    return TrainJob(name, "finetune", replace(checked, flags=flags), (before.name,), start=before.name)


def _evaluation(settings: Mapping[str, Any], before: TrainJob, source: str) -> TrainJob:
    checked = stage_settings("evaluate", settings["evaluate"], source)
    asked, trained = checked.checked, before.settings.checked
    if not isinstance(asked, EvaluateSettings) or not isinstance(trained, FinetuneConfig):
        raise TypeError("an evaluation follows a fine-tuning")
    rows = trained.rows if asked.tasks is None else trained.rows.select(asked.tasks)
    judged = [task.name for task in rows if asked.boundary or task.metric != "odsF"]
    part = judged if len(judged) < len(task_table(trained.dataset)) else None
    stored = f"{store_name(asked.split, asked.checkpoint, asked.limit, part)}.json"
    name = job_name("evaluate", {**checked.identity(), "of": before.name})
    return TrainJob(name, "evaluate", checked, (before.name,), start=before.name, stored=stored)


def _distillation(settings: Mapping[str, Any], source: str) -> TrainJob:
    checked = stage_settings("distill", settings["distill"], source)
    teachers = checked.flags.get("teachers")
    if not is_on(settings, "extract"):
        raise UsageError(f"{source}: distill reads a cache; name it in the section extract (cache: ./cache)")
    reads = _need("extract", settings["extract"], teachers, source)
    measured_on = None
    if is_on(settings, "held_out"):
        measured_on = _need("held_out", settings["held_out"], teachers, source)
    if reads.limit is not None and not checked.flags.get("allow_partial"):
        checked = checked.with_flags(allow_partial=True)
    if reads.spec is not None and "views" not in checked.flags:
        checked = checked.with_flags(views=reads.views)  # the cache may have more, for other rows or later ones
    document = {**checked.identity(), "reads": _read_document(reads), "measured_on": _read_document(measured_on)}
    return TrainJob(job_name("distill", document), "distill", checked, (), reads, measured_on)


def _need(section: str, settings: Mapping[str, Any], teachers: Sequence[str] | None, source: str) -> CacheNeed:
    source = f"{source}: {section}"
    checked = parse_settings(CacheSettings, settings, source)
    spec = resolve_spec(checked, source)
    unheeded = checked.model_fields_set & {"views", "limit"}
    if spec is None and unheeded:
        raise UsageError(
            f"{source}.{min(unheeded)} says what to extract, and without a spec nothing is; distill.views reads some "
            "of a cache's views"
        )
    if section == "held_out" and checked.limit is not None:
        raise UsageError(f"{source}.limit: rep_sim is measured on all images of a cache; name fewer with data")
    if spec is not None and checked.data is None:
        raise UsageError(f"{source}.data is missing: the images that the spec's teachers look at")
    return CacheNeed(
        **checked.model_dump(exclude={"overrides", "spec"}),
        spec=None if spec is None else only_teachers(spec, teachers, source),
        teachers=None if teachers is None else tuple(teachers),
    )


def _read_document(need: CacheNeed | None) -> Settings | None:
    """What a training sees of a cache, wherever it lies; of one without a spec only its location is known."""
    if need is None:
        return None
    if need.spec is None:
        return {"cache": need.cache}
    seen = {"data": need.data, "views": need.views, "limit": need.limit}
    return {"spec": spec_document(need.spec), "order": list(need.spec.teachers), **seen}


def job_name(stage: str, document: Any) -> str:
    """The stage and the first digits of the SHA-256 of all that decides the outcome; folders of old studies have it."""
    return f"{stage}-{sha256(canonical_json(document).encode('ascii')).hexdigest()[:DIGITS]}"


@dataclass
class _Extraction:
    """One extraction for several trainings: `shared` is what their needs have in common, all but teachers and views.

    `spec` has the teachers of all, and no teacher in two versions; `need` has the most views that one wants.
    """

    shared: str
    need: CacheNeed
    spec: CacheSpec
    readers: list[str]

    def takes(self, shared: str, spec: CacheSpec) -> bool:
        """Whether another need fits in."""
        teachers = {**spec.teachers, **self.spec.teachers}
        return self.shared == shared and all(teachers[name] == teacher for name, teacher in spec.teachers.items())

    def add(self, need: CacheNeed, spec: CacheSpec, reader: str) -> None:
        """One more need, and who has it."""
        self.spec = self.spec.model_copy(update={"teachers": {**self.spec.teachers, **spec.teachers}})
        self.need = replace(self.need, spec=self.spec, views=max(self.need.views, need.views))
        self.readers.append(reader)

    def job(self) -> ExtractJob:
        """Named by all that it extracts, but for the number of views, which may grow."""
        document = {"shared": self.shared, "spec": spec_document(self.spec)}
        return ExtractJob(job_name("extract", document), self.need)


def _with_extractions(jobs: Sequence[TrainJob]) -> dict[str, StudyJob]:
    """The jobs, and before them the extractions that fill their caches: one for all that may share one."""
    extractions: list[_Extraction] = []
    for job in jobs:
        for need in (job.reads, job.measured_on):
            if need is not None and need.spec is not None:
                _join(extractions, need, need.spec, job.name)
    filling = [(extraction.job(), extraction.readers) for extraction in extractions]
    work: dict[str, StudyJob] = {extraction.name: extraction for extraction, _ in filling}
    for job in jobs:
        before = [extraction.name for extraction, readers in filling if job.name in readers]
        work[job.name] = replace(job, after=(*before, *job.after))
    return work


def _join(extractions: list[_Extraction], need: CacheNeed, spec: CacheSpec, reader: str) -> None:
    document = spec_document(spec)
    del document["teachers"]
    shared = canonical_json({**document, "cache": need.cache, "data": need.data, "limit": need.limit})
    extraction = next((known for known in extractions if known.takes(shared, spec)), None)
    if extraction is None:
        extraction = _Extraction(shared, need, spec, [])
        extractions.append(extraction)
    extraction.add(need, spec, reader)
