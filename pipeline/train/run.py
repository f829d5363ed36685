"""A run's directory: its resolved configuration, what made it, its measurements, its log and checkpoints.

config.yaml      every setting, defaults written out
run.json         versions, command line, cache keys, start and end
metrics.jsonl    one JSON object a line
train.log        what was said, with times
checkpoints/     see `pipeline.train.checkpoint`
figures/
"""

import errno
import fcntl
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipeline.progress import Update
from pipeline.settings import dump_yaml, read_yaml
from pipeline.storage.local import is_scratch, replace_durably
from pipeline.storage.location import explain
from sak.errors import UsageError

CONFIG, ABOUT, METRICS, LOG, LOCK = "config.yaml", "run.json", "metrics.jsonl", "train.log", ".lock"
# What decides pixels, features and numbers.
PACKAGES = (
    *("sak", "torch", "torchvision", "timm", "open_clip_torch", "segment-anything", "accelerate"),
    *("numpy", "scipy", "scikit-image", "pillow", "opencv-python-headless", "numcodecs"),
)


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps everything; made by `create`, found again by `resume`."""

    root: Path

    @classmethod
    def create(cls, root: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> "RunDirectory":
        """A new directory with its configuration; UsageError where one is there and may not be replaced."""
        run = cls(root)
        if run._holds_something():
            if not overwrite:
                raise UsageError(f"{root} exists and is not empty; go on with --resume, or replace it with --overwrite")
            if not (root / CONFIG).is_file():
                raise UsageError(
                    f"{root} is not a run's directory (no {CONFIG}); it is not overwritten, choose another"
                )
            with run.held():
                run._clear()
        with _explained(root):
            root.mkdir(parents=True, exist_ok=True)
            run._write(CONFIG, dump_yaml(config))
            run.checkpoints.mkdir()
            run.figures.mkdir()
        return run

    def _holds_something(self) -> bool:
        """Whether the directory holds more than the leftovers of a run killed while it was made."""
        names = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        return any(name != LOCK and not is_scratch(name) for name in names)

    def _clear(self) -> None:
        """Remove all but the configuration, by which a run's directory is known, should this be interrupted."""
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (CONFIG, LOCK):
                path.unlink()

    @classmethod
    def resume(
        cls, root: Path, config: Mapping[str, Any], *, force: bool = False, reads: Mapping[str, Any] | None = None
    ) -> "RunDirectory":
        """The directory of a run to go on with; UsageError lists the settings that differ, unless `force`.

        `reads` is what `describe` will write under that name: other columns or samples make another run too.
        """
        run = cls(root)
        try:
            before = read_yaml(root / CONFIG, "a run's settings")
        except UsageError as error:
            raise UsageError(f"{root} is not a run to resume ({error}); start one without --resume") from error
        differing = differences(before, config)
        if reads is not None and "reads" in run.about():
            differing += differences(run.about()["reads"], json.loads(_json(reads)), "reads.")
        if differing and not force:
            listed = "; ".join(f"{name}: was {old!r}, now {new!r}" for name, old, new in differing)
            raise UsageError(
                f"{root}: the configuration changed: {listed}; put it back, or go on all the same with --force"
            )
        with run.held():
            run.checkpoints.mkdir(exist_ok=True)
            run.figures.mkdir(exist_ok=True)
            if differing:
                run._write(CONFIG, dump_yaml(config))
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process trains here while the block runs; UsageError where one does.

        The lock ends with the process, however it ends. File systems that know no locks give none.
        """
        with (self.root / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"{self.root}: another process trains here; wait for its end, or choose another --out"
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
            yield

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def figures(self) -> Path:
        """The folder of pictures."""
        return self.root / "figures"

    def describe(self, **facts: Any) -> None:
        """Write `run.json`: versions, machine and command line, with `facts`; earlier sessions are kept."""
        before = {"sessions": [], **self.about()}
        session = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in PACKAGES},
            "machine": platform.platform(),
        }
        self._write(ABOUT, _json({**before, **facts, "sessions": [*before["sessions"], session]}) + "\n")

    def about(self) -> dict[str, Any]:
        """What `run.json` says; empty where there is none yet."""
        path = self.root / ABOUT
        return json.loads(path.read_text()) if path.is_file() else {}

    def conclude(self, **facts: Any) -> None:
        """Add to this session's entry in `run.json` when it ended, and how."""
        document = self.about()
        document["sessions"][-1] |= {"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
        self._write(ABOUT, _json(document) + "\n")

    def log(self, line: str) -> None:
        """Append a line with the time to `train.log`."""
        self._append(LOG, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def record(self, values: Mapping[str, Any]) -> None:
        """Append one measurement to `metrics.jsonl`."""
        self._append(METRICS, json.dumps(values) + "\n")

    def _append(self, name: str, text: str) -> None:
        with _explained(self.root / name), (self.root / name).open("a") as file:
            file.write(text)

    def _write(self, name: str, text: str) -> None:
        with _explained(self.root / name):
            replace_durably(self.root / name, text.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """All measurements so far; a last line cut short by a crash is left out."""
        path = self.root / METRICS
        if not path.is_file():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def forget_after(self, step: int, *, measured: int = -1) -> None:
        """Drop what was recorded after `step`, and its evaluation unless `measured` is that step: both come again."""
        kept = [
            line
            for line in self.metrics()
            if line.get("step", 0) < step
            or (line.get("step") == step and (measured == step or not line.get("evaluation")))
        ]
        self._write(METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, before, now) of every setting that differs."""
    differing = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differing += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            differing.append((f"{prefix}{name}", old, new))
    return differing


def random_teachers(about: Mapping[str, Any]) -> tuple[str, ...]:
    """Teachers with random weights, by what `run.json` says was read, ran live, was learnt from or is probed."""
    reads, probe = _mapping(about.get("reads")), _mapping(about.get("probe"))
    said, live = reads.get("random"), _mapping(reads.get("live"))
    sources = [*_mapping(about.get("teachers")).items(), ("probe", probe.get("teacher"))]
    known = [(str(_mapping(record).get("name", name)), _mapping(record).get("weights")) for name, record in sources]
    random = [
        *(map(str, said) if isinstance(said, list) else ()),
        *(str(name) for name, record in live.items() if _mapping(record).get("random")),
        *(name for name, weights in known if str(weights).startswith("random")),
    ]
    return tuple(dict.fromkeys(random))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, default=str)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, str(path)) from error


@dataclass(frozen=True)
class Start:
    """How a run begins: anew, over another, or where it stopped (`force`: although the configuration changed)."""

    resume: bool = False
    overwrite: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse to go on with what is to be replaced."""
        if self.resume and self.overwrite:
            raise UsageError("--resume goes on with a run, --overwrite replaces it: give one of them")


@dataclass(frozen=True)
class RunOptions:
    """What goes with a run and changes nothing of it: how it begins, and who hears of it.

    `say` takes lines for the user, `progress` steps.
    """

    start: Start = Start()
    trackers: Sequence[str] = ()
    say: Callable[[str], None] | None = None
    progress: Update | None = None


def open_run(
    out: Path, settings: Mapping[str, Any], reads: Mapping[str, Any] | None, accelerator: Accelerator, start: Start
) -> RunDirectory:
    """The run's directory, made or checked by the main process before any other uses it; see `RunDirectory.resume`."""
    run = RunDirectory(out)
    if accelerator.is_main_process:
        run = (
            RunDirectory.resume(out, settings, force=start.force, reads=reads)
            if start.resume
            else RunDirectory.create(out, settings, overwrite=start.overwrite)
        )
    accelerator.wait_for_everyone()
    return run
