"""Runs opened for evaluation: networks and data of each, and its evaluation, made or found in its directory."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from pipeline.data.datasets import check_tree, files_read, open_dataset, task_table
from pipeline.data.sample import ListedDataset
from pipeline.dense.evaluation import Evaluation, Predict, evaluate_tasks
from pipeline.dense.gates import recorded_gates
from pipeline.dense.task_data import label_statistics, needs_labels, trivial_predict
from pipeline.dense.task_model import Checkpoint, TaskModels, check_options
from pipeline.evaluate.results import (
    Evaluated,
    StoredEvaluation,
    files_digest,
    images_digest,
    read_stored,
    store_name,
    weights_digest,
    write_stored,
)
from pipeline.progress import Say, Update
from pipeline.settings import read_yaml
from pipeline.train.run import CONFIG
from sak.errors import UsageError
from sak.tasks import Dataset

Bar = Callable[[str], AbstractContextManager[Update]]
"""Opens a progress bar of its own for each part of the work, such as `pipeline.progress.progress_bar`."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run: a fine-tuned run, or the folder of a checkpoint; what is found is written there.
        data: the data set's folder; None: where the run was trained.
        dataset: its name or YAML file; None: the run's own.
        split: train or val, or one of a described folder.
        checkpoint: `best` or `last`.
        baseline_run: a run to take delta_m over, with single-task networks as the paper has it.
        tasks: some of them; None: all that the run predicts.
        boundary: False leaves edges out, which take longest.
        trivial: also evaluate predictors that look at no image.
        batch_size: images in a forward.
        device: cuda, cpu or auto.
        workers: processes that read, match boundaries and write.
        save: a folder for the predictions.
        limit: the first images alone.
        pictures: images in `figures/predictions.png`; 0 for no figures.
        again: evaluate anew although what is stored fits.
    """

    run: Path
    data: Path | None = None
    dataset: str | None = None
    split: str = "val"
    checkpoint: Checkpoint = "best"
    baseline_run: Path | None = None
    tasks: tuple[str, ...] | None = None
    boundary: bool = True
    trivial: bool = False
    batch_size: int = 8
    device: str = "cuda"
    workers: int = 2
    save: Path | None = None
    limit: int | None = None
    pictures: int = 4
    again: bool = False

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        check_options(
            self.checkpoint,
            ("--batch-size", self.batch_size, 1),
            ("--workers", self.workers, 0),
            ("--limit", self.limit, 1),
            ("--pictures", self.pictures, 0),
        )
        occupied = self.save is not None and self.save.exists() and (not self.save.is_dir() or any(self.save.iterdir()))
        if occupied and not self.again:
            raise UsageError(
                f"--save: {self.save} is not an empty folder; choose another, or write over it with --again"
            )


@dataclass(frozen=True)
class OpenedRun:
    """A run's networks, the data they are judged on, and what that is called."""

    directory: Path
    networks: TaskModels
    table: Dataset
    dataset: ListedDataset
    of: Evaluated
    path: Path
    """Of the stored evaluation, a `.json`."""


@dataclass(frozen=True)
class Evaluator:
    """The command's flags and where its work is done."""

    config: EvaluateConfig
    accelerator: Accelerator
    bar: Bar | None
    say: Say

    def open(self, run: Path, like: OpenedRun | None = None) -> OpenedRun:
        """A run and its data, checked before anything long starts; `like` another, a run on the very same data."""
        config = self.config
        name = config.dataset if like is None else like.of.dataset
        networks = TaskModels.load(run, checkpoint=config.checkpoint, dataset=name)
        name, table = networks.dataset, networks.table(config.tasks)
        data = Path(like.of.data) if like is not None else config.data or trained_on(run)
        labels = [task.name for task in table if task.metric != "odsF"]
        edges = config.boundary and len(labels) < len(table)
        table = table if edges else table.select(labels)
        check_tree(name, data, config.split, labels).raise_if_incomplete()
        if edges:
            check_tree(name, data, config.split, ["edge"], boundaries=True).raise_if_incomplete()
        dataset = open_dataset(name, data, config.split, labels)
        count = len(dataset) if config.limit is None else min(config.limit, len(dataset))
        of = Evaluated(
            name,
            str(data.resolve()),
            config.split,
            images_digest(dataset, count),
            table.names,
            config.checkpoint,
            weights_digest([model.model for model in networks.models]),
            networks.size,
            files_digest(files_read(dataset, count, boundaries=edges)),
        )
        part = table.names if len(table) < len(task_table(name)) else None
        path = run / f"{store_name(config.split, config.checkpoint, config.limit, part)}.json"
        return OpenedRun(run, networks, table, dataset, of, path)

    def evaluated(self, opened: OpenedRun) -> StoredEvaluation:
        """The evaluation stored in the run's directory where it is of the very same, else made and stored there."""
        saves = self.config.save is not None and opened.directory == self.config.run
        before = None if self.config.again or saves else read_stored(opened.path, opened.of)
        if before is not None:
            self.say(f"{opened.path} is of the very same network and images: taken from there (--again evaluates anew)")
            return before
        self.say(f"evaluating {opened.directory}: {', '.join(opened.table.names)}")
        opened.networks.to(self.accelerator.device)
        with recorded_gates(opened.networks.single) as recorder:
            evaluation = self._measure(opened.networks.predict, opened, self.config.save if saves else None)
        gates = recorder.means(self.accelerator)
        opened.networks.to("cpu")
        stored = StoredEvaluation(opened.of, evaluation, gates)
        if self.accelerator.is_main_process:
            write_stored(opened.path, stored.as_dict())
        return stored

    def trivial(self, opened: OpenedRun, stored: StoredEvaluation) -> Evaluation | None:
        """What looks at no image scores, on the same images; None where nobody asked."""
        if not self.config.trivial or stored.trivial is not None:
            return stored.trivial
        learnt = needs_labels(opened.table)
        training = open_dataset(opened.of.dataset, opened.of.data, "train", learnt)
        self.say(f"statistics of {len(training):,} training labels, then their trivial predictors on the same images")
        with self.bar("labels") if self.bar is not None else nullcontext() as progress:
            statistics = label_statistics(training, opened.table, workers=self.config.workers, progress=progress)
        return self._measure(trivial_predict(statistics, opened.table), opened, None, rescale_depth=False)

    def _measure(
        self, predict: Predict, opened: OpenedRun, save: Path | None, *, rescale_depth: bool = True
    ) -> Evaluation:
        with self.bar("images") if self.bar is not None else nullcontext() as progress:
            return evaluate_tasks(
                predict,
                opened.dataset,
                opened.table,
                size=opened.networks.size,
                accelerator=self.accelerator,
                batch_size=self.config.batch_size,
                workers=self.config.workers,
                progress=progress,
                save=save,
                limit=self.config.limit,
                rescale_depth=rescale_depth,
            )


def trained_on(run: Path) -> Path:
    """The data that a run's configuration names; UsageError where it names none, or that is not there."""
    try:
        data = read_yaml(run / CONFIG).get("data")
    except UsageError:
        data = None
    if not isinstance(data, str):
        raise UsageError(f"{run} does not say where its data is; name the data set's folder with --data")
    if not Path(data).is_dir():
        raise UsageError(f"{run} was trained on {data}, which is not there; name the data set's folder with --data")
    return Path(data)
