"""What was run with what: a line a run, and its settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.reporting.html import Markup, escape, joined, missing, number, section, table
from pipeline.reporting.runs import ReportedRun
from pipeline.training.run import differences

_SHOWN_SETTINGS = 60
IMAGENET, TEACHER, TEACHERS, RANDOM = "imagenet", "teacher:", "teachers:", "random:"  # what --init says of no run


def overview(runs: Sequence[ReportedRun]) -> Markup:
    """A line a run."""
    rows = [
        {
            "run": run.name,
            "stage": run.stage,
            "kind": run.kind,
            "starts from": starts_from(run, runs),
            "trained on": _data(run),
            "teachers": _teachers(run),
            "student": _student(run),
            "steps": _steps(run),
            "state": _state(run),
            "images/s": number(run.images_per_second, 3),
            "hardware": _hardware(run),
        }
        for run in runs
    ]
    left = ("stage", "kind", "starts from", "trained on", "teachers", "student", "state", "hardware")
    parts: list[Markup | str] = [table(rows, caption="The runs of this report", left=left)]
    random = sorted({name for run in runs for name in run.random})
    if random:
        parts.append(
            missing(
                f"RANDOM weights: {', '.join(random)}. Such teachers know nothing: these runs show that everything "
                "works, not what the method gains."
            )
        )
    parts += [missing(f"{run.name}: {problem}") for run in runs for problem in run.problems]
    settings = f"<details><summary>Settings of every run</summary>{_settings(runs).text}</details>"
    return section("runs", "What was run with what", *parts, Markup(settings))


def _settings(runs: Sequence[ReportedRun]) -> Markup:
    """Settings by run: all of the first, then what differs."""
    parts = []
    for run in runs:
        flat = list(_flat(run.config))
        base = next((each for each in runs if each.stage == run.stage), run)
        if base is not run:
            flat = [(name, now) for name, _, now in differences(base.config, run.config)]
        rows = [{"setting": name, "value": _short(value)} for name, value in flat[:_SHOWN_SETTINGS]]
        title = f"{run.name}: all settings" if base is run else f"{run.name}: what differs from {base.name}"
        shown = table(rows, caption=title, left=("value",)) if rows else missing("Nothing differs.")
        parts.append(Markup(f"<details><summary>{escape(title)}</summary>{shown.text}</details>"))
    return joined(*parts)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in config.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else None
        flat += inner if inner is not None else [(f"{prefix}{name}", value)]
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def starts_from(run: ReportedRun, runs: Sequence[ReportedRun]) -> str:
    """The run of this page whose weights it took; else what its settings say."""
    init = run.config.get("init")
    if not isinstance(init, str) or init == IMAGENET:
        recipe = run.config.get("recipe")
        student = recipe.get("student") if isinstance(recipe, Mapping) else None
        return str(student.get("weights") or "-") if isinstance(student, Mapping) else "-"
    if init.startswith((TEACHER, TEACHERS, RANDOM)):
        return init
    path = Path(init)
    path = path.parents[1] if path.parent.name == "checkpoints" else path
    others = [each for each in runs if each is not run and each.stage == "distill"]
    beside = [each for each in others if each.place.resolve().parent == run.place.resolve().parent]
    for some, moved in ((others, False), (beside, True)):
        same = [each.name for each in some if _is_at(each, path, moved=moved)]
        if len(same) == 1:
            return same[0]
    return path.name or init


def _is_at(run: ReportedRun, path: Path, *, moved: bool) -> bool:
    """Whether a run is the one at `path`; `moved`: it may lie elsewhere by now, with the run that names it."""
    place = run.place.resolve().parts
    if path.is_absolute() and (not moved or _is_there(path)):
        return place == path.parts
    last = path.parts[-2:] if moved else path.parts
    return len(last) >= (1 if moved else 2) and place[-len(last) :] == last


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _data(run: ReportedRun) -> str:
    if run.dataset is not None:
        count = run.reads.get("images")
        return f"{run.dataset}, {count} images" if count is not None else run.dataset
    samples = run.reads.get("samples")
    count = f"{samples[0]:,} images" if isinstance(samples, list) and samples and isinstance(samples[0], int) else "?"
    views = run.reads.get("views")
    return f"cache, {count}, {views} view{'' if views == 1 else 's'}" if views is not None else "?"


def _teachers(run: ReportedRun) -> str:
    student = run.about.get("student")
    found = run.about.get("teachers") or (student.get("teachers") if isinstance(student, Mapping) else None)
    told = found if isinstance(found, list | Mapping) else []
    names = [each[0] if isinstance(each, list) and each else each for each in told]  # pairs, or names
    return ", ".join(_teacher(run, str(name)) for name in names) or "none"


def _teacher(run: ReportedRun, name: str) -> str:
    """`clip (demo/clip)`, where the run knows the model, and RANDOM where its weights are."""
    places = (run.reads.get("live"), run.about.get("teachers"))
    told = [each.get(name) for each in places if isinstance(each, Mapping)]
    model = next((each["model"] for each in told if isinstance(each, Mapping) and each.get("model")), None)
    return f"{name}{f' ({model})' if model else ''}{' RANDOM' if name in run.random else ''}"


def _student(run: ReportedRun) -> str:
    student = run.about.get("student")
    if not isinstance(student, Mapping):
        return "frozen teacher" if run.about.get("probe") else "-"
    stem = student.get("stem")
    if isinstance(stem, Mapping):
        stem = f"ViT {stem.get('width', '?')} wide, {stem.get('depth', '?')} deep"
    return f"{stem}{'' if student.get('adapters', True) else ', no adapter paths'}"


def _steps(run: ReportedRun) -> str:
    steps = [line["step"] for line in run.lines if isinstance(line.get("step"), int)]
    return f"{max(steps):,}" if steps else "-"


def _sessions(run: ReportedRun) -> list[Mapping[str, Any]]:
    found = run.about.get("sessions")
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _state(run: ReportedRun) -> str:
    sessions = _sessions(run)
    if not sessions or "ended" not in sessions[-1]:
        return "not ended"
    sitting = "" if len(sessions) == 1 else f", {len(sessions)} sessions"
    return ("stopped" if sessions[-1].get("stopped") else "done") + sitting


def _hardware(run: ReportedRun) -> str:
    sessions = _sessions(run)
    if not sessions:
        return "-"
    packages = sessions[-1].get("packages")
    torch = packages.get("torch", "?") if isinstance(packages, Mapping) else "?"
    return f"{run.config.get('device', '?')}, torch {torch}"
