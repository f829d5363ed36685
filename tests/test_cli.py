"""The command table: help, errors, exit codes."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from sak.errors import SakError, UsageError

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "cli.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code)


def test_help_imports_no_torch_and_no_stage():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "cli.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[1].strip() for line in result.stderr.splitlines() if "|" in line}
    heavy = {"torch", "timm", "numpy", "zarr", "dask", "pipeline.extract.stage", "matplotlib"}
    assert not imported & heavy


def test_help_takes_less_than_half_a_second_of_processor_time():
    """Not of the clock, which other work on the machine stretches."""
    assert min(_processor_seconds("--help") for _ in range(3)) < 0.5


def _processor_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version_is_the_package_version():
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout == f"sak-cli {cli.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["doctor", "--jsn"], "no option --jsn in `sak-cli doctor`; did you mean '--json'?"),
        (["cache", "du", "--jsn"], "no option --jsn in `sak-cli cache du`; did you mean '--json'?"),
        (["boundary", "a", "b", "--no-nm"], "no option --no-nm in `sak-cli boundary`; did you mean '--no-nms'?"),
        (["--hepl"], "no option --hepl in `sak-cli`; did you mean '--help'?"),
        (["cache", "lss"], "No such command 'lss'. Did you mean 'ls'? (see `sak-cli cache --help`)"),
    ],
)
def test_a_word_that_is_unknown_names_the_nearest_in_one_line(monkeypatch, capsys, arguments, line):
    assert exit_code(arguments) == 2
    assert capsys.readouterr().err == f"sak-cli: {line}\n"


def test_an_unknown_command_names_the_nearest_in_one_line():
    result = run("docter")
    assert result.returncode == 2
    assert "doctor" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(SakError("disk full"), 1), (UsageError("no such recipe"), 2)])
def test_an_error_is_one_line_and_its_exit_code(monkeypatch, capsys, error, code):
    monkeypatch.setattr(cli, "_run", _raiser(error))
    assert exit_code(["doctor"]) == code
    assert capsys.readouterr().err == f"sak-cli: {error}\n"


def test_an_unforeseen_error_is_one_line_that_names_debug(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", _raiser(ValueError("two\nlines")))
    assert exit_code(["doctor"]) == 1
    assert capsys.readouterr().err == "sak-cli: ValueError: two lines; run it again with --debug for the traceback\n"


def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", _raiser(SakError("disk full")))
    assert exit_code(["doctor", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", _raiser(KeyboardInterrupt()))
    assert exit_code(["doctor"]) == 130
    assert capsys.readouterr().err == "sak-cli: interrupted\n"


def test_an_interrupt_inside_a_command_is_one_line_and_exit_code_130(monkeypatch, capsys):
    def examine(places):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.doctor.examine", examine)
    assert exit_code(["doctor"]) == 130
    assert capsys.readouterr().err == "sak-cli: interrupted\n"


def test_words_are_completed_in_the_cache_group_too(monkeypatch, capsys):
    monkeypatch.setenv("_SAK_CLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "sak-cli cache ver")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert exit_code([]) == 0
    assert capsys.readouterr().out.split() == ["verify"]


def _raiser(error: BaseException):
    def fail(arguments):
        raise error

    return fail


def test_every_command_has_an_example_in_its_help():
    lacking = [command.callback.__name__ for command in _commands(cli.app) if "Example" not in command.callback.__doc__]
    assert not lacking


def _commands(app):
    yield from app.registered_commands
    for group in app.registered_groups:
        yield from _commands(group.typer_instance)


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_spin_briefly_unless_the_user_says_so(given, count):
    environment = dict(given)
    cli.wait_briefly(environment)
    assert environment.get("GOMP_SPINCOUNT") == count


def asked_by(monkeypatch, stage: str, arguments: list[str]):
    """What a command hands to its stage, which is not carried out."""
    given = []

    def take(config, *others, **named):
        given.append((config, *others, named))
        raise SakError("that is all")

    monkeypatch.setattr(stage, take)
    assert exit_code(arguments) == 1
    return given[0]


def test_every_flag_of_distill_reaches_its_configuration(monkeypatch, tmp_path):
    flags = (
        "--teachers a,b --levels 9,12 --spec s.yaml --data d --steps 7 --batch-size 6 --precision bf16 --val-cache v "
    )
    flags += "--val-data w --online --teachers-online a --allow-partial --views 2 --fresh-views --device cpu --seed 3 "
    flags += "--set loss.kind=l2 --set data.workers=1 --resume --force --trackers tensorboard"
    line = ["distill", "--cache", "c", "--out", str(tmp_path / "run"), *flags.split()]
    config, out, options, _ = asked_by(monkeypatch, "pipeline.distill.stage.distill", line)
    assert config.model_dump(exclude={"recipe"}) == {
        "cache": "c", "teachers": ("a", "b"), "levels": (9, 12), "spec": "s.yaml", "data": "d", "val_cache": "v",
        "val_data": "w", "online": True, "teachers_online": ("a",), "allow_partial": True, "views": 2,
        "fresh_views": True, "device": "cpu",
    }  # fmt: skip
    training = config.recipe.training
    assert (training.steps, training.epochs, training.batch_size) == (7, None, 6)
    assert (training.precision, training.seed, config.recipe.loss.kind) == ("bf16", 3, "l2")
    assert out == tmp_path / "run"
    assert (options.start.resume, options.start.force, options.trackers) == (True, True, ("tensorboard",))


def test_every_flag_of_finetune_reaches_its_configuration(monkeypatch, tmp_path):
    flags = "--init i --dataset nyud --data d --tasks depth,edge --teachers a --spec s.yaml --no-distill --baseline "
    flags += "multi-task --baseline-run b --fraction 0.5 --eval-boundary --epochs 0.5 --batch-size 6 --precision bf16 "
    flags += "--device cpu --workers 1 --seed 3 --set tasks.weighting=dwa --overwrite --trackers wandb"
    line = ["finetune", "--out", str(tmp_path / "run"), *flags.split()]
    config, out, options, _ = asked_by(monkeypatch, "pipeline.finetune.stage.finetune", line)
    assert config.model_dump(exclude={"recipe"}) == {
        "init": "i", "dataset": "nyud", "data": "d", "tasks": ("depth", "edge"), "teachers": ("a",), "spec": "s.yaml",
        "distil": False, "baseline": "multi-task", "baseline_run": "b", "fraction": 0.5, "device": "cpu",
    }  # fmt: skip
    recipe = config.recipe
    assert (recipe.training.epochs, recipe.training.steps, recipe.training.batch_size) == (0.5, None, 6)
    assert (recipe.training.precision, recipe.training.seed, recipe.tasks.weighting) == ("bf16", 3, "dwa")
    assert (recipe.evaluation.boundary, recipe.evaluation.workers, recipe.data.workers) == (True, 1, 1)
    assert out == tmp_path / "run"
    assert (options.start.overwrite, options.trackers) == (True, ("wandb",))


@pytest.mark.parametrize(
    ("stage", "line", "wanted"),
    [
        ("pipeline.evaluate.stage.evaluate",
         "evaluate r --data d --baseline-run b --tasks depth --no-boundary --save s --limit 3 --again --json",
         {"run": Path("r"), "data": Path("d"), "baseline_run": Path("b"), "tasks": ("depth",), "boundary": False,
          "save": Path("s"), "limit": 3, "again": True, "dataset": None, "workers": 2}),
        ("pipeline.predict.predict", "predict r x.jpg y --out o --tasks depth,edge --size 32 48 --overwrite",
         {"run": Path("r"), "out": Path("o"), "tasks": ("depth", "edge"), "size": (32, 48), "overwrite": True}),
        ("pipeline.ablate.stage.run_ablation",
         "ablate s.yaml --out o --jobs 2 --dry-run --device cpu --set a=1 --set b=2",
         {"study": Path("s.yaml"), "out": Path("o"), "jobs": 2, "dry_run": True, "overrides": ["a=1", "b=2"]}),
        ("pipeline.extract.stage.extract",
         "extract --spec s.yaml --data d --cache c --teachers a,b --views 2 --workers 1 --threads 3 --device cpu "
         "--limit 4 --max-bad 0.5 --dry-run --ignore-space --set codec=zstd",
         {"data": "d", "cache": "c", "teachers": ("a", "b"), "views": 2, "limit": 4, "max_bad": 0.5, "dry_run": True,
          "ignore_space": True, "overrides": ["codec=zstd"]}),
    ],
)  # fmt: skip
def test_flags_reach_the_configurations_of_the_other_stages(monkeypatch, stage, line, wanted):
    config = asked_by(monkeypatch, stage, line.split())[0]
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_where_an_extraction_runs_is_told_apart(monkeypatch):
    line = "extract --spec s.yaml --data d --cache c --workers 2 --threads 3 --device cpu"
    cluster = asked_by(monkeypatch, "pipeline.extract.stage.extract", line.split())[0].cluster
    assert (cluster.scheduler, cluster.device, cluster.workers, cluster.threads) == (None, "cpu", 2, 3)


@pytest.mark.parametrize("line", ["evaluate r --checkpoint lst", "predict r x.jpg --out o --checkpoint lst"])
def test_a_checkpoint_that_is_none_is_wrong_usage(capsys, line):
    assert exit_code(line.split()) == 2
    assert capsys.readouterr().err == "sak-cli: no checkpoint 'lst'; did you mean 'last'?\n"


def test_an_option_that_names_nothing_is_wrong_usage(capsys):
    assert exit_code(["predict", "r", "x.jpg", "--out", "o", "--tasks", ","]) == 2
    assert "names nothing" in capsys.readouterr().err
