"""The command table of `sak-cli`: names, flags and help; every command imports its stage when it runs.

Nothing imports this module, and `--help` imports neither torch nor a stage. A command's parameters are there for typer;
they go on to the stage's configuration by their names (`_flags`).
"""

import atexit
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sak import __version__
from sak.errors import SakError, UsageError, nearest

if TYPE_CHECKING:
    from pipeline.train.protocols import FitResult

# typer carries its own click, so this is where its usage errors are found
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

INTERRUPTED = 130

app = typer.Typer(
    name="sak-cli",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Cache the features of several vision foundation models once, distil them into one student, fine-tune it.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sak-cli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where a command fails.")] = False,
) -> None:
    del version, debug  # both are read before a command runs


def _say(line: str) -> None:
    """Beside the results, which go to standard output."""
    typer.echo(line, err=True)


RUN = ("out", "resume", "overwrite", "force", "trackers")
CLUSTER = ("scheduler", "device", "workers", "threads")


def _flags(context: typer.Context, but: Sequence[str] = ()) -> dict[str, Any]:
    """What the command was given, by its parameters' names, lists taken apart; without how it is to answer."""
    other = ("as_json", *but)
    given = {name: value for name, value in context.params.items() if value is not None and name not in other}
    return {name: LISTS[name](value) if name in LISTS else value for name, value in given.items()}


def _end(result: "FitResult") -> None:
    """Say how a run ended, and exit accordingly."""
    typer.echo(f"{'Stopped' if result.stopped else 'Done'} after {result.step:,} steps; {result.checkpoint}")
    raise typer.Exit(128 + (result.signal or 0) if result.stopped else 0)


# Options that several commands have.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: a.b=value; repeatable.")]
Teachers = Annotated[str | None, typer.Option(help="Some of the teachers, separated by commas.")]
CachePlace = Annotated[str, typer.Option(help="The cache: a folder or URL, or rw:ro for an overlay.")]
Device = Annotated[str, typer.Option(help="cuda, cpu, or auto.")]
ExistingCache = Annotated[str, typer.Argument(help="The cache.")]
MovedImages = Annotated[str | None, typer.Option(help="Where the images are now; where they were, by default.")]
Tasks = Annotated[str | None, typer.Option(help="Some of the tasks, separated by commas.")]
Processes = Annotated[int | None, typer.Option(help="Worker processes; all cores by default.")]
ExtractionWorkers = Annotated[int | None, typer.Option(help="One per visible GPU, or one on the CPU, by default.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N images.")]
RunDirectory = Annotated[Path, typer.Option(help="The run's directory.")]
Epochs = Annotated[float | None, typer.Option(help="Length of the run in epochs.")]
Steps = Annotated[int | None, typer.Option(help="Length of the run in steps.")]
GlobalBatch = Annotated[int | None, typer.Option(help="Global: over all processes.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
OverwriteRun = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")]
Force = Annotated[bool, typer.Option("--force", help="Resume although settings changed.")]
Trackers = Annotated[str | None, typer.Option(help="tensorboard, wandb.")]
FinetunedRun = Annotated[Path, typer.Argument(help="A fine-tuned run, or the folder of an imported checkpoint.")]
OtherDataset = Annotated[str | None, typer.Option(help="Its name or YAML file; the run's own by default.")]
Checkpoint = Annotated[str, typer.Option(help="best or last.")]
ForwardBatch = Annotated[int, typer.Option(help="Images in a forward.")]


@app.command()
def doctor(
    places: Annotated[list[str] | None, typer.Argument(help="Folders whose free disk matters to you.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is here (versions, devices, disk, weights) and what would fail.

    Example: [cyan]sak-cli doctor ./cache /data/imagenet[/cyan]
    """
    from pipeline.doctor import examine

    report = examine(tuple(places or ()))
    typer.echo(report.to_json() if as_json else report.to_text())
    raise typer.Exit(report.exit_code)


@app.command()
def demo_data(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist, or be empty.")],
    images: Annotated[int, typer.Option(help="ImageNet-like images, in webdataset shards.")] = 512,
    scenes: Annotated[int, typer.Option(help="Scenes written to each downstream layout.")] = 96,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    processes: Processes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace demo data that is there.")] = False,
) -> None:
    """Write procedural images with exact labels: ImageNet-like shards, PASCAL-Context's and NYUD-v2's layouts.

    Example: [cyan]sak-cli demo-data ./demo/data --images 512 --scenes 96[/cyan]
    """
    from pipeline.demo.data.write import write_demo_data
    from pipeline.progress import progress_bar

    with progress_bar("images") as progress:
        manifest = write_demo_data(**_flags(context), progress=progress)
    trees = ", ".join(f"{out / folder} ({name})" for name, folder in manifest.folders.items())
    typer.echo(
        f"{manifest.images} images and {manifest.scenes} scenes of {manifest.size} px, seed {manifest.seed}: {trees}"
    )
    typer.echo(f"Look at {out / 'contact_sheet.png'}")


@app.command()
def teachers(as_json: AsJson = False) -> None:
    """List the named teachers: library, exact weights, licence, width, grid of a 384 view, parameters.

    Example: [cyan]sak-cli teachers --json[/cyan]
    """
    from sak.teachers.registry import list_teachers

    if as_json:
        typer.echo(json.dumps([teacher.as_dict() for teacher in list_teachers()], indent=2))
        return
    from pipeline.tables import text_table

    rows = [
        {
            "name": teacher.name,
            "model": teacher.model,
            "licence": teacher.licence,
            "width": teacher.width,
            "depth": teacher.depth,
            "grid": "{}x{}".format(*teacher.grid),
            "parameters": f"{teacher.parameters / 1e6:,.1f} M",
        }
        for teacher in list_teachers()
    ]
    typer.echo(text_table(rows))


@app.command()
def demo_teachers(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scenes, runs, weights and cards; run again, it goes on.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Some of dino, clip, sam, stem, separated by commas.")] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe, as in recipes/demo_teachers/.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override: dino.steps=2000.")] = None,
    device: Device = "auto",
    processes: Annotated[int | None, typer.Option(help="Processes that render scenes; all cores by default.")] = None,
    show: Annotated[
        Path | None,
        typer.Option(help="Train nothing: draw what the teachers (shipped, or in --out) see into this PNG."),
    ] = None,
) -> None:
    """Train the demo's own teachers and stem on procedural scenes, or show what trained ones see.

    Example: [cyan]sak-cli demo-teachers --out ./demo/teachers --only dino,clip[/cyan]
    """
    from pipeline.demo.teachers.pictures import show_teachers
    from pipeline.demo.teachers.stage import run_demo_teachers
    from pipeline.progress import progress_bar

    if show is not None:
        typer.echo(f"Wrote {show_teachers(show, weights=out, say=typer.echo)}")
        return
    if out is None:
        raise UsageError("--out is missing: the folder for scenes, runs, weights and cards; --show alone needs none")
    with progress_bar("steps") as progress:
        results = run_demo_teachers(**_flags(context, but=("show",)), say=typer.echo, progress=progress)
    for name, result in results.items():
        typer.echo(f"{name}: {'stopped' if result.stopped else 'done'} after {result.step:,} steps")
    stopped = [result.signal or 0 for result in results.values() if result.stopped]
    raise typer.Exit(128 + stopped[0] if stopped else 0)


@app.command()
def boundary(
    predictions: Annotated[Path, typer.Argument(help="Folder of <id>.png: 8-bit grey, 255 a certain boundary.")],
    truth: Annotated[Path, typer.Argument(help="The data set's folder; for bsds the folder of its .mat files.")],
    dataset: Annotated[str, typer.Option(help="pascal-context, nyud or bsds.")],
    split: Annotated[str, typer.Option(help="The split whose images count.")] = "val",
    nms: Annotated[bool, typer.Option(help="Non-maximum suppression first, as for raw network outputs.")] = True,
    protocol: Annotated[str, typer.Option(help="seism, or bsds: interpolates between thresholds.")] = "seism",
    max_dist: Annotated[float | None, typer.Option(help="Matching distance as a share of the diagonal.")] = None,
    processes: Processes = None,
    partial: Annotated[bool, typer.Option("--partial", help="Score what is there, and say how much is not.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for boundary.json and precision_recall.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score boundary predictions made anywhere: odsF, OIS, AP, without MATLAB.

    Example: [cyan]sak-cli boundary ./edges /data/NYUDv2 --dataset nyud --out ./edges-report[/cyan]
    """
    from pipeline.evaluate.boundary import BoundaryConfig, evaluate_boundaries, parse_protocol, write_report
    from pipeline.progress import progress_bar

    config = BoundaryConfig(
        predictions, truth, dataset, split, nms, parse_protocol(protocol), max_dist, processes, partial
    )
    with progress_bar("images") as progress:
        report = evaluate_boundaries(config, progress=progress)
    if out is not None:
        write_report(report, out)
    typer.echo(report.to_json() if as_json else report.to_text())


@app.command()
def extract(
    context: typer.Context,
    spec: Annotated[Path, typer.Option(help="What the cache contains: a file of cache_specs/.")],
    data: Annotated[str, typer.Option(help="Image shards: a folder, pattern or URL; or a folder of images.")],
    cache: CachePlace,
    teachers: Teachers = None,
    views: Annotated[int, typer.Option(help="How many views there shall be; more append to those there are.")] = 1,
    workers: ExtractionWorkers = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of a worker; shares out the cores by default.")
    ] = None,
    scheduler: Scheduler = None,
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto: cuda where there is one.")] = "cuda",
    batch_size: Annotated[int, typer.Option(help="Images in a teacher's forward.")] = 32,
    limit: Limit = None,
    max_bad: Annotated[float, typer.Option(help="Share of images that may be unusable.")] = 0.001,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    ignore_space: Annotated[
        bool, typer.Option("--ignore-space", help="Start although the disk seems too small.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Stage 1: run the frozen teachers once and keep their features. Running it again goes on where it stopped.

    Example: [cyan]sak-cli extract --spec cache_specs/sak_b.yaml --data /data/imagenet --cache ./cache[/cyan]
    """
    from pipeline.cluster import ClusterConfig
    from pipeline.extract.columns import ExtractConfig
    from pipeline.extract.stage import extract as run_extraction
    from pipeline.progress import Messages, progress_bar

    cluster = ClusterConfig(scheduler, device, workers, threads)
    config = ExtractConfig(cluster=cluster, **_flags(context, but=CLUSTER))
    with progress_bar("images") as progress:
        report = run_extraction(config, Messages(say=_say, progress=progress))
    typer.echo(report.to_json() if as_json else report.to_text())


@app.command()
def distill(
    context: typer.Context,
    cache: CachePlace,
    out: RunDirectory,
    config: Annotated[Path | None, typer.Option(help="A recipe, such as those of recipes/distill/.")] = None,
    overrides: Overrides = None,
    teachers: Teachers = None,
    levels: Annotated[str | None, typer.Option(help="Some of the teachers' blocks, such as 9,12.")] = None,
    spec: Annotated[Path | None, typer.Option(help="Refuse columns that another spec made.")] = None,
    data: MovedImages = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: GlobalBatch = None,
    precision: Precision = None,
    val_cache: Annotated[str | None, typer.Option(help="A cache of held-out images, to measure rep_sim on.")] = None,
    val_data: Annotated[str | None, typer.Option(help="Where the held-out images are now.")] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Run the teachers instead of reading them: a control.")
    ] = False,
    teachers_online: Annotated[str | None, typer.Option(help="Run these teachers, read the others.")] = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Train on what is extracted so far.")] = False,
    views: Annotated[int | None, typer.Option(help="Read only the first so many of the cache's views.")] = None,
    fresh_views: Annotated[
        bool, typer.Option("--fresh-views", help="New views each epoch; every teacher must run live.")
    ] = False,
    device: Device = "cuda",
    seed: Annotated[int | None, typer.Option(help="Of the student, the order and the jitter.")] = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    force: Force = False,
    trackers: Trackers = None,
) -> None:
    """Stage 2: train the student against the cache, with no teacher forward. torchrun starts several processes.

    Example: [cyan]sak-cli distill --cache ./cache --out ./runs/b --config recipes/distill/sak_b_from_b.yaml[/cyan]
    """
    from pipeline.distill.stage import distill as run_distillation
    from pipeline.distill.stage import distill_config
    from pipeline.progress import progress_bar
    from pipeline.train.run import RunOptions, Start

    asked, start = distill_config(**_flags(context, but=RUN)), Start(resume, overwrite, force)
    with progress_bar("steps") as progress:
        result = run_distillation(asked, out, RunOptions(start, comma_list(trackers) or (), _say, progress))
    _end(result)


@app.command()
def finetune(
    context: typer.Context,
    init: Annotated[
        str, typer.Option(help="A distilled run, an imported checkpoint, imagenet, random:SEED, or teacher:NAME.")
    ],
    dataset: Annotated[str, typer.Option(help="pascal-context, nyud, demo-pascal, demo-nyud, or your own .yaml.")],
    data: Annotated[Path, typer.Option(help="The data set's folder.")],
    out: RunDirectory,
    config: Annotated[Path | None, typer.Option(help="A recipe, such as those of recipes/finetune/.")] = None,
    overrides: Overrides = None,
    tasks: Tasks = None,
    teachers: Teachers = None,
    spec: Annotated[
        Path | None, typer.Option(help="A cache spec that describes teachers, or says where they are.")
    ] = None,
    no_distill: Annotated[bool, typer.Option("--no-distill", help="Train on the tasks alone.")] = False,
    baseline: Annotated[
        str | None, typer.Option(help="single-task or multi-task: the stem alone, no teachers.")
    ] = None,
    baseline_run: Annotated[
        Path | None, typer.Option(help="A baseline: the best checkpoint is by delta_m over it.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of the training images, fixed by the seed.")] = 1.0,
    eval_boundary: Annotated[
        bool | None, typer.Option("--eval-boundary", help="Measure edges by odsF while training, not by their loss.")
    ] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: GlobalBatch = None,
    precision: Precision = None,
    device: Device = "cuda",
    workers: Annotated[int | None, typer.Option(help="Processes that read and augment images.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the new parts, the order, the augmentation, the fraction.")
    ] = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    force: Force = False,
    trackers: Trackers = None,
) -> None:
    """Stage 3: train on a data set's tasks, beside live teachers. torchrun starts several processes.

    Example: [cyan]sak-cli finetune --init ./runs/b --dataset nyud --data /data/NYUDv2 --out ./runs/b-nyud
    --config recipes/finetune/nyud_b.yaml[/cyan]
    """
    from pipeline.finetune.stage import finetune as run_finetuning
    from pipeline.finetune.stage import finetune_config
    from pipeline.progress import progress_bar
    from pipeline.train.run import RunOptions, Start

    asked, start = finetune_config(**_flags(context, but=RUN)), Start(resume, overwrite, force)
    with progress_bar("steps") as progress:
        result = run_finetuning(asked, out, RunOptions(start, comma_list(trackers) or (), _say, progress))
    _end(result)


@app.command()
def evaluate(
    context: typer.Context,
    run: FinetunedRun,
    data: Annotated[Path | None, typer.Option(help="The data set's folder; where it was, by default.")] = None,
    dataset: OtherDataset = None,
    split: Annotated[str, typer.Option(help="train or val, or one of a described folder.")] = "val",
    checkpoint: Checkpoint = "best",
    baseline_run: Annotated[Path | None, typer.Option(help="A run to take delta_m over.")] = None,
    tasks: Tasks = None,
    boundary: Annotated[bool, typer.Option(help="Match boundaries too (odsF), which takes longest.")] = True,
    trivial: Annotated[bool, typer.Option("--trivial", help="Set predictors beside it that look at no image.")] = False,
    batch_size: ForwardBatch = 8,
    device: Device = "cuda",
    workers: Annotated[int, typer.Option(help="Processes that read, match boundaries and write.")] = 2,
    save: Annotated[Path | None, typer.Option(help="A folder for the predictions, one folder a task.")] = None,
    limit: Limit = None,
    pictures: Annotated[int, typer.Option(help="Images in figures/predictions.png; 0: no figures.")] = 4,
    again: Annotated[bool, typer.Option("--again", help="Evaluate anew although what is stored fits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every metric of the data set, odsF included, delta_m over a baseline; JSON, Markdown and figures in the run.

    Example: [cyan]sak-cli evaluate ./runs/sak --data /data/pascal --baseline-run ./runs/single-task[/cyan]
    """
    from pipeline.evaluate.stage import EvaluateConfig
    from pipeline.evaluate.stage import evaluate as run_evaluation
    from pipeline.progress import progress_bar

    report = run_evaluation(EvaluateConfig(**_flags(context)), bar=progress_bar, say=_say)
    if report.is_main:
        typer.echo(report.to_json() if as_json else report.to_text())


@app.command()
def predict(
    context: typer.Context,
    run: FinetunedRun,
    images: Annotated[list[Path], typer.Argument(help="Images of any size and kind, and folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures: one folder a task, and panels.")],
    tasks: Tasks = None,
    checkpoint: Checkpoint = "best",
    dataset: OtherDataset = None,
    size: Annotated[tuple[int, int] | None, typer.Option(help="HEIGHT WIDTH to predict at.")] = None,
    batch_size: ForwardBatch = 4,
    device: Device = "cuda",
    workers: Annotated[int, typer.Option(help="Processes that decode and write.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures that are there.")] = False,
) -> None:
    """Predict every task for your own images: a picture for each task, and one panel of all.

    Example: [cyan]sak-cli predict ./runs/sak photo.jpg ./holiday --out ./pictures[/cyan]
    """
    from pipeline.predict import PredictConfig
    from pipeline.predict import predict as run_prediction
    from pipeline.progress import progress_bar

    with progress_bar("images") as progress:
        report = run_prediction(PredictConfig(**_flags(context)), progress=progress)
    typer.echo(report.to_text())
    raise typer.Exit(1 if report.bad else 0)


@app.command()
def ablate(
    context: typer.Context,
    study: Annotated[Path, typer.Argument(help="A study, such as those of recipes/ablations/.")],
    out: Annotated[Path | None, typer.Option(help="Its folder; runs/<the study's name> by default.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Stages at once; one for each visible GPU by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, or auto; the study's by default.")] = None,
    overrides: Overrides = None,
) -> None:
    """Run a grid of stages over shared caches, and print one table. Running it again goes on where it stopped.

    Example: [cyan]sak-cli ablate recipes/ablations/table7-demo.yaml --dry-run[/cyan]
    """
    from pipeline.ablate.stage import AblateConfig, run_ablation
    from pipeline.tables import SCREEN

    report = run_ablation(AblateConfig(**_flags(context)), _say)
    typer.echo(report.to_text(SCREEN))
    raise typer.Exit(report.exit_code)


@app.command()
def report(
    context: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold some, such as a study's.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "Swiss Army Knife: report",
    maps: Annotated[
        bool, typer.Option(help="Draw feature maps of teachers and student, which runs the student.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
) -> None:
    """Write one self-contained page: runs, curves, rep_sim, gates, maps, predictions, metrics, cache.

    Example: [cyan]sak-cli report ./runs/distill ./runs/finetune --out report.html[/cyan]
    """
    from pipeline.report import ReportConfig, write_report

    typer.echo(f"Wrote {write_report(ReportConfig(**_flags(context)), _say)}")


cache_app = typer.Typer(no_args_is_help=True, help="Plan, look at, prove, mend and move feature caches.")
app.add_typer(cache_app, name="cache")


@cache_app.command("plan")
def cache_plan(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(help="A file of cache_specs/.")],
    samples: Annotated[int, typer.Option(help="How many images; ImageNet has 1,281,167.")] = 1_281_167,
    views: Annotated[int, typer.Option(help="Views of each image.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Where it will lie: measures reading and free disk there.")] = None,
    images_per_second: Annotated[float | None, typer.Option(help="Extraction's speed, all teachers together.")] = None,
    training_images_per_second: Annotated[float, typer.Option(help="Speed of the training that will read.")] = 850.0,
    gpu_hour_price: Annotated[float | None, typer.Option(help="Price of a GPU for an hour.")] = None,
    tb_month_price: Annotated[float | None, typer.Option(help="Price of 1e12 bytes kept for a month.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of one distillation run.")] = 30,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what a cache will take before anything runs: bytes, hours, money, reading speed, and cheaper ways.

    Example: [cyan]sak-cli cache plan cache_specs/sak_b.yaml --samples 1281167 --images-per-second 300[/cyan]
    """
    from dataclasses import asdict

    from pipeline.cache.spec import load_spec
    from pipeline.cache.tools.plan import Rates, plan, plan_text
    from pipeline.cache.tools.sizes import probe

    rates = _flags(context, but=("spec", "samples", "views", "cache", "overrides"))
    if cache is not None:
        rates |= asdict(probe(cache))
    found = plan(load_spec(spec, overrides or ()), samples, views, rates=Rates(**rates))
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else plan_text(found))


@cache_app.command("ls")
def cache_ls(cache: ExistingCache, as_json: AsJson = False) -> None:
    """List the columns: what made them, how complete they are, their size.

    Example: [cyan]sak-cli cache ls ./cache[/cyan]
    """
    from pipeline.cache.tools.inventory import ls, summary_table

    columns = ls(cache)
    typer.echo(json.dumps([column.as_dict() for column in columns], indent=2) if as_json else summary_table(columns))


@cache_app.command("du")
def cache_du(cache: ExistingCache, as_json: AsJson = False) -> None:
    """Bytes on disk by column and level, from the files that are there.

    Example: [cyan]sak-cli cache du ./cache[/cyan]
    """
    from pipeline.cache.tools.inventory import du, summary_table

    columns = du(cache)
    typer.echo(json.dumps([column.as_dict() for column in columns], indent=2) if as_json else summary_table(columns))


@cache_app.command("stats")
def cache_stats(cache: ExistingCache, as_json: AsJson = False) -> None:
    """Fidelity, norms and outliers of every level, as recorded when it was written.

    Example: [cyan]sak-cli cache stats ./cache --json[/cyan]
    """
    from pipeline.cache.tools.inventory import stats, summary_table

    levels = stats(cache)
    typer.echo(json.dumps([level.as_dict() for level in levels], indent=2) if as_json else summary_table(levels))


@cache_app.command("verify")
def cache_verify(
    cache: ExistingCache,
    deep: Annotated[bool, typer.Option("--deep", help="Every byte against its digest, every sample decoded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove that a cache is what its records say; exit code 1 where anything is wrong.

    Example: [cyan]sak-cli cache verify ./cache --deep[/cyan]
    """
    from pipeline.cache.tools.verify import verify
    from pipeline.progress import progress_bar

    with progress_bar("blocks") as progress:
        found = verify(cache, deep=deep, progress=progress)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.to_text())
    raise typer.Exit(0 if found.sound else 1)


@cache_app.command("repair")
def cache_repair(
    context: typer.Context,
    cache: Annotated[str, typer.Argument(help="The cache: one folder or URL.")],
    data: MovedImages = None,
    spec: Annotated[Path | None, typer.Option(help="The spec it was made from: mends damaged manifests.")] = None,
    device: Device = "cuda",
    workers: ExtractionWorkers = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker.")] = None,
    scheduler: Scheduler = None,
    batch_size: Annotated[int, typer.Option(help="For blocks whose record does not say theirs any more.")] = 32,
) -> None:
    """Verify deeply and extract exactly the damaged blocks again; exit code 1 where something is left.

    Example: [cyan]sak-cli cache repair ./cache[/cyan]
    """
    from pipeline.cluster import ClusterConfig
    from pipeline.extract.repair import RepairConfig, repair
    from pipeline.progress import Messages, progress_bar

    cluster = ClusterConfig(scheduler, device, workers, threads)
    config = RepairConfig(cluster=cluster, **_flags(context, but=CLUSTER))
    with progress_bar("images") as progress:
        report = repair(config, Messages(say=_say, progress=progress))
    typer.echo(report.to_text())
    raise typer.Exit(0 if report.sound else 1)


@cache_app.command("check-live")
def cache_check_live(
    context: typer.Context,
    cache: ExistingCache,
    teachers: Teachers = None,
    samples: Annotated[int, typer.Option(help="Images of every column, spread evenly over it.")] = 16,
    view: Annotated[int, typer.Option(help="Which view.")] = 0,
    data: MovedImages = None,
    device: Device = "cuda",
    as_json: AsJson = False,
) -> None:
    """Run the teachers on a sample of the images and compare with the cache; exit code 1 where they disagree.

    Example: [cyan]sak-cli cache check-live ./cache --samples 32[/cyan]
    """
    from pipeline.extract.check_live import check_live

    report = check_live(**_flags(context))
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.to_text())
    raise typer.Exit(0 if report.agrees else 1)


@cache_app.command("prune")
def cache_prune(
    cache: ExistingCache,
    keys: Annotated[str | None, typer.Option(help="Columns by name or its first letters, separated by commas.")] = None,
    older_than_days: Annotated[float | None, typer.Option(help="Columns not changed for so long.")] = None,
    unused_by: Annotated[str | None, typer.Option(help="Folders of runs: columns that none of them read.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove columns by name, by age, or because no run uses them; asks first, spares what is being written.

    Example: [cyan]sak-cli cache prune ./cache --unused-by ./runs[/cyan]
    """
    from pipeline.cache.tools.prune import plan_prune, prune
    from pipeline.tables import human_bytes

    plan = plan_prune(cache, names=comma_list(keys), older_than_days=older_than_days, unused_by=comma_list(unused_by))
    typer.echo(json.dumps(plan.as_dict(), indent=2) if as_json else plan.to_text())
    if dry_run or not plan.remove:
        return
    if yes or typer.confirm("Remove them?", err=True):
        typer.echo(f"Freed {human_bytes(prune(plan))}", err=as_json)


@cache_app.command("copy")
def cache_copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="The cache to read.")],
    target: Annotated[str, typer.Argument(help="The cache to write: a folder or URL.")],
    teachers: Teachers = None,
    to_format: Annotated[
        str | None, typer.Option("--format", help="zarr or webdataset; the source's by default.")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="none, zstd, blosc or pcodec; the source's by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Copy columns to another place or format; running it again goes on where it stopped.

    Example: [cyan]sak-cli cache copy ./cache s3://bucket/cache --format webdataset[/cyan]
    """
    from pipeline.cache.tools.copy import copy_cache
    from pipeline.progress import progress_bar

    with progress_bar("blocks") as progress:
        report = copy_cache(**_flags(context), progress=progress)
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.to_text())


@app.command()
def compare(
    reference: Annotated[Path, typer.Argument(help="The run to improve on, such as the probe of the plain ViT.")],
    runs: Annotated[list[Path], typer.Argument(help="Runs to set beside it, such as the teachers' probes.")],
    as_json: AsJson = False,
) -> None:
    """Improvements of evaluated runs over a reference, their mu/sigma over the tasks, and the best by task.

    Example: [cyan]sak-cli compare ./probes/vit ./probes/dinov2 ./probes/clip ./probes/sam[/cyan]
    """
    from pipeline.compare import compare_runs

    found = compare_runs(reference, runs)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.to_text())


@app.command()
def export(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run of distill or finetune, or a checkpoint's folder.")],
    to: Annotated[str, typer.Option(help="safetensors, torch-export or onnx.")],
    out: Annotated[Path, typer.Option(help="The export's folder.")],
    outputs: Annotated[
        str | None, typer.Option(help="predictions, features or task-features; predictions where there are heads.")
    ] = None,
    checkpoint: Checkpoint = "best",
    averaged: Annotated[bool, typer.Option("--averaged", help="The averaged weights (training.ema).")] = False,
    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="HEIGHT WIDTH, other than the trained one.")
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Take images of any size in multiples of 16.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export that is there.")] = False,
) -> None:
    """Take the student away: no aligners, gates in eval form, checked against the run, with a model card and a loader.

    Example: [cyan]sak-cli export ./runs/b --to onnx --out ./exports/b --dynamic-size[/cyan]
    """
    from pipeline.export.stage import run_export

    done = run_export(**_flags(context), say=_say)
    typer.echo(f"Wrote {done.folder} ({done.format}), at most {done.difference:.1e} from the run; read its README.md")


@app.command("import-checkpoint")
def import_checkpoint(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="One of the authors' files: .safetensors, or PyTorch's.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint in our layout.")],
    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="HEIGHT WIDTH; the data set's, or the file's, by default.")
    ] = None,
    num_heads: Annotated[int | None, typer.Option(help="64 channels a head by default, as S, B and L have.")] = None,
    teachers: Annotated[str | None, typer.Option(help="In the experts' order, separated by commas.")] = None,
    tasks: Annotated[str | None, typer.Option(help="The tasks of the heads, separated by commas.")] = None,
    dataset: Annotated[str | None, typer.Option(help="pascal-context or nyud, for a fine-tuned file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in --out.")] = False,
) -> None:
    """Bring one of the authors' checkpoints into our layout; nothing in the file is executed.

    Example: [cyan]sak-cli import-checkpoint sak_b.pth --out ./runs/authors-b --teachers dinov2,clip,sam[/cyan]
    """
    from sak.checkpoints.reference import import_checkpoint as bring_in

    typer.echo(f"Wrote {bring_in(**_flags(context))}")


def number_list(option: str, text: str | None) -> tuple[int, ...] | None:
    """`9,12` as numbers; None where nothing was given."""
    parts = comma_list(text)
    if parts is None:
        return None
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"{option} {text!r}: give numbers separated by commas, such as 9,12")
    return tuple(int(part) for part in parts)


def comma_list(text: str | None) -> tuple[str, ...] | None:
    """`a,b` as a list; None where nothing was given, UsageError where nothing is named."""
    if text is None:
        return None
    named = tuple(part.strip() for part in text.split(",") if part.strip())
    if not named:
        raise UsageError(f"{text!r} names nothing: give names separated by commas, or leave the option out")
    return named


LISTS: dict[str, Callable[[str | None], object]] = {
    **dict.fromkeys(("teachers", "teachers_online", "tasks", "only"), comma_list),
    "levels": partial(number_list, "--levels"),
}
"""Parameter -> how its list is taken apart."""


def _usage_line(error: Exception) -> str:
    """One line for a usage error, with the nearest option where an unknown one was given."""
    option = getattr(error, "option_name", None)
    context = getattr(error, "ctx", None)
    if option is not None and context is not None and type(error).__name__ == "NoSuchOption":
        options = [(*get_param.opts, *get_param.secondary_opts) for get_param in context.command.get_params(context)]
        known = [name for names in options for name in names if name.startswith("--")]
        return f"no option {option} in `{context.command_path}`{nearest(str(option), known)}"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    return f"{message}{where}"


def _fail(message: str, code: int) -> int:
    typer.echo(f"sak-cli: {' '.join(message.split())}", err=True)
    return code


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, prog_name="sak-cli", standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help itself has been printed
            return 2
        return _fail(_usage_line(error), 2)
    except typer.Abort:
        return _fail("stopped", 1)
    if result == INTERRUPTED:  # typer has caught the KeyboardInterrupt
        return _fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM stops a command as Ctrl-C does."""
    del number, frame
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted; errors are one line."""
    if arguments is None:
        signal.signal(signal.SIGTERM, _interrupt)
        wait_briefly(os.environ)
        atexit.register(leave := _Leave())  # registered first, so that it runs last
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = _run([argument for argument in given if argument != "--debug"])
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as `sak-cli teachers | head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except SakError as error:
        if debug:
            traceback.print_exc()
        code = _fail(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; run it again with --debug for the traceback"
        code = _fail(f"{type(error).__name__}: {error}{hint}", 1)
    if arguments is None:  # the work is over: a signal that comes now must not change how it ended
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        leave.code = code
    sys.exit(code)


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """OpenMP's threads, for torch to come: by default they spin for milliseconds while they wait for each other.

    Beside another busy process that makes a training step on the CPU up to 30 times slower; on idle cores spinning for
    microseconds is as fast. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "1000")


class _Leave:
    """Ends the process once all else has: taking torch and what it imported apart would take over a second."""

    code = 1

    def __call__(self) -> None:
        with suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self.code)


if __name__ == "__main__":
    main()
