"""A run's directory: its resolved configuration, what made it, its measurements, its log and checkpoints.

config.yaml      every setting, defaults written out
run.json         versions, command line, cache keys, start and end
metrics.jsonl    one JSON object a line
train.log        what was said, with times
checkpoints/     see `pipeline.training.checkpoint`
figures/
"""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from sak.errors import SakError, UsageError

CONFIG, ABOUT, METRICS, LOG = "config.yaml", "run.json", "metrics.jsonl", "train.log"
PACKAGES = ("sak", "torch", "timm", "accelerate", "numpy", "zarr")


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps everything; made by `create`, found again by `resume`."""

    root: Path

    @classmethod
    def create(cls, root: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> "RunDirectory":
        """A new directory with its configuration; UsageError where one is there and may not be replaced."""
        run = cls(root)
        if root.exists() and any(root.iterdir()):
            if not overwrite:
                raise UsageError(f"{root} exists and is not empty; go on with --resume, or replace it with --overwrite")
            if not (root / CONFIG).is_file():
                raise UsageError(
                    f"{root} is not a run's directory (no {CONFIG}); it is not overwritten, choose another"
                )
            shutil.rmtree(root)
        run.checkpoints.mkdir(parents=True)
        run.figures.mkdir()
        _write_whole(root / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
        return run

    @classmethod
    def resume(cls, root: Path, config: Mapping[str, Any], *, force: bool = False) -> "RunDirectory":
        """The directory of a run to go on with; UsageError lists the settings that differ, unless `force`."""
        run = cls(root)
        try:
            before = yaml.safe_load((root / CONFIG).read_text())
        except (OSError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{root} is not a run to resume ({reason}); start one without --resume") from error
        differing = differences(before, config)
        if differing and not force:
            listed = "; ".join(f"{name}: was {old!r}, now {new!r}" for name, old, new in differing)
            raise UsageError(
                f"{root}: the configuration changed: {listed}; put it back, or go on all the same with --force"
            )
        if differing:
            _write_whole(root / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
        return run

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
        document = {**before, **facts, "sessions": [*before["sessions"], session]}
        _write_whole(self.root / ABOUT, json.dumps(document, indent=2, default=str) + "\n")

    def about(self) -> dict[str, Any]:
        """What `run.json` says; empty where there is none yet."""
        path = self.root / ABOUT
        return json.loads(path.read_text()) if path.is_file() else {}

    def conclude(self, **facts: Any) -> None:
        """Add to this session's entry in `run.json` when it ended, and how."""
        document = self.about()
        document["sessions"][-1] |= {"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
        _write_whole(self.root / ABOUT, json.dumps(document, indent=2, default=str) + "\n")

    def log(self, line: str) -> None:
        """Append a line with the time to `train.log`."""
        with (self.root / LOG).open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def record(self, values: Mapping[str, Any]) -> None:
        """Append one measurement to `metrics.jsonl`."""
        with (self.root / METRICS).open("a") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All measurements so far; a last line cut short by a crash is left out."""
        path = self.root / METRICS
        if not path.is_file():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def forget_after(self, step: int) -> None:
        """Drop measurements of steps after `step`: they are made again from the checkpoint."""
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        _write_whole(self.root / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, before, now) of every setting that differs."""
    found = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append((f"{prefix}{name}", old, new))
    return found


def _write_whole(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with scratch.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise SakError(f"{path} cannot be written ({error.strerror}); make room or choose another --out") from error
