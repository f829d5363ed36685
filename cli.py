"""The command table of `sak-cli`: names, flags and help; every command imports its stage when it runs.

Nothing imports this module, and `--help` imports neither torch nor a stage.
"""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sak import __version__
from sak.errors import SakError, nearest

_UsageError: type[Exception] = typer.BadParameter.__bases__[
    0
]  # typer carries its own click, so this is where its usage errors are found

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


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist, or be empty.")],
    images: Annotated[int, typer.Option(help="ImageNet-like images, in webdataset shards.")] = 512,
    scenes: Annotated[int, typer.Option(help="Scenes written to each downstream layout.")] = 96,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    processes: Annotated[int | None, typer.Option(help="Worker processes; all cores by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace demo data that is there.")] = False,
) -> None:
    """Write procedural images with exact labels: ImageNet-like shards, PASCAL-Context's and NYUD-v2's layouts.

    Example: [cyan]sak-cli demo-data ./demo/data --images 512 --scenes 96[/cyan]
    """
    from pipeline.data.demo import write_demo_data
    from pipeline.progress import progress_bar

    with progress_bar("images") as progress:
        manifest = write_demo_data(
            out,
            images=images,
            scenes=scenes,
            size=size,
            seed=seed,
            processes=processes,
            overwrite=overwrite,
            progress=progress,
        )
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
def boundary(
    predictions: Annotated[Path, typer.Argument(help="Folder of <id>.png: 8-bit grey, 255 a certain boundary.")],
    truth: Annotated[Path, typer.Argument(help="The data set's folder; for bsds the folder of its .mat files.")],
    dataset: Annotated[str, typer.Option(help="pascal-context, nyud or bsds.")],
    split: Annotated[str, typer.Option(help="The split whose images count.")] = "val",
    nms: Annotated[bool, typer.Option(help="Non-maximum suppression first, as for raw network outputs.")] = True,
    protocol: Annotated[str, typer.Option(help="seism, or bsds: interpolates between thresholds.")] = "seism",
    max_dist: Annotated[float | None, typer.Option(help="Matching distance as a share of the diagonal.")] = None,
    processes: Annotated[int | None, typer.Option(help="Worker processes; all cores by default.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Score what is there, and say how much is not.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for boundary.json and precision_recall.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score boundary predictions made anywhere: odsF, OIS, AP, without MATLAB.

    Example: [cyan]sak-cli boundary ./edges /data/NYUDv2 --dataset nyud --out ./edges-report[/cyan]
    """
    from pipeline.boundary import BoundaryConfig, evaluate_boundaries, parse_protocol, write_report
    from pipeline.progress import progress_bar

    config = BoundaryConfig(
        predictions, truth, dataset, split, nms, parse_protocol(protocol), max_dist, processes, partial
    )
    with progress_bar("images") as progress:
        report = evaluate_boundaries(config, progress=progress)
    if out is not None:
        write_report(report, out)
    typer.echo(report.to_json() if as_json else report.to_text())


def _usage_line(error: Exception) -> str:
    """One line for a usage error, with the nearest option where an unknown one was given."""
    option = getattr(error, "option_name", None)
    context = getattr(error, "ctx", None)
    if option is not None and context is not None and type(error).__name__ == "NoSuchOption":
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        return f"no option {option} in `{context.command_path}`{nearest(str(option), known)}"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    return f"{message}{where}"


def _fail(message: str, code: int) -> int:
    typer.echo(f"sak-cli: {' '.join(message.split())}", err=True)
    return code


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help itself has been printed
            return 2
        return _fail(_usage_line(error), 2)
    except typer.Abort:
        return _fail("stopped", 1)
    return result if isinstance(result, int) else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted; errors are one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = _run([argument for argument in given if argument != "--debug"])
    except KeyboardInterrupt:
        code = _fail("interrupted", 130)
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
    sys.exit(code)


if __name__ == "__main__":
    main()
