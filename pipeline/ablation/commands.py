"""The command line of `sak-cli` that does a job."""

from pathlib import Path

from pipeline.ablation.folders import State, StudyFolder
from pipeline.ablation.jobs import ExtractJob, Job
from pipeline.ablation.stages import flag


def arguments(job: Job, folder: StudyFolder, device: str) -> list[str]:
    """What follows `sak-cli`; a training that has a checkpoint goes on, one that has none begins anew."""
    if isinstance(job, ExtractJob):
        return _extract(job, folder, device)
    if job.stage == "evaluate":
        run = folder.run(job.start or "")
        return ["evaluate", str(run.root), *job.settings.arguments(), *("--device", device)]
    run = folder.run(job.name)
    begin = {State.NEW: "--overwrite", State.STARTED: "--resume", State.DONE: "--resume"}[folder.state(job)]
    caches: list[str] = []
    if job.reads is not None:
        caches += ["--cache", job.reads.cache]
        if job.reads.spec is not None:
            caches += ["--spec", str(folder.spec(job.reads.spec))]
    if job.measured_on is not None:
        caches += ["--val-cache", job.measured_on.cache]
    start = ["--init", str(folder.run(job.start).root)] if job.start is not None else []
    return [
        job.stage,
        *("--config", str(folder.recipe(job))),
        *caches,
        *start,
        *job.settings.arguments(),
        *("--device", device),
        *("--out", str(run.root)),
        *([begin] if Path(run.root).exists() else []),
    ]


def _extract(job: ExtractJob, folder: StudyFolder, device: str) -> list[str]:
    need = job.need
    if need.spec is None or need.data is None:
        raise ValueError(f"{job.name}: nothing says what to extract")
    return [
        "extract",
        *("--spec", str(folder.spec(need.spec))),
        *("--data", need.data),
        *("--cache", need.cache),
        *("--views", str(need.views)),
        *("--batch-size", str(need.batch_size)),
        *(flag("limit", need.limit) if need.limit is not None else []),
        *(flag("max_bad", need.max_bad) if need.max_bad is not None else []),
        *("--device", device),
    ]
