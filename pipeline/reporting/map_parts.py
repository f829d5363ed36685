"""The section of the report that shows feature maps."""

from collections.abc import Sequence

from pipeline.reporting.html import Markup, escape, figure, joined, missing, picture, section
from pipeline.reporting.maps import SIDE, MapPictures, map_pictures
from pipeline.reporting.runs import ReportedRun
from sak.errors import SakError

IMAGES, RUNS = 2, 3


def maps(runs: Sequence[ReportedRun], *, wanted: bool) -> Markup:
    """Teachers' maps and the student's, for every distilled run whose cache and images are at hand."""
    title = "What teachers see, and what the student answers (PCA)"
    mine = [run for run in runs if run.stage == "distill"]
    if not wanted or not mine:
        reason = "no run of this report was distilled" if wanted else "--no-maps was given"
        return section("maps", title, missing(f"Left out: {reason}."))
    parts: list[Markup | str] = [
        "Each patch of a feature map is drawn as a colour: the first three principal components of the teacher's map, "
        "and below it the student's map in the same ones, each stretched to its own range: compare patterns, and "
        "hues only roughly. The number is the cosine of the two maps as they are, 1 where they are the same."
    ]
    for run in mine[:RUNS]:
        try:
            found = map_pictures(run, IMAGES)
        except (SakError, OSError, KeyError, ValueError) as error:
            parts.append(missing(f"{run.name}: left out, {' '.join(str(error).split())}"))
            continue
        parts += [_grid(run, each) for each in found]
    if len(mine) > RUNS:
        parts.append(missing(f"Shown for {RUNS} of {len(mine)} runs: {', '.join(run.name for run in mine[:RUNS])}."))
    return section("maps", title, *parts)


def _grid(run: ReportedRun, found: MapPictures) -> Markup:
    levels = list(next(iter(found.maps.values())))
    heads = "".join(f'<th scope="col">level {escape(level)}</th>' for level in levels)
    rows = []
    for teacher, by_level in found.maps.items():
        marked = f"{teacher} RANDOM" if teacher in run.random else teacher
        for who, place in (("teacher", 0), ("student", 1)):
            cells = []
            for level, shown in by_level.items():
                told = f"{who}'s map of {teacher}, level {level}, {found.key}"
                note = f'<span class="note">{shown[2]:.2f}</span>' if place else ""
                png = shown[0] if place == 0 else shown[1]
                cells.append(f"<td>{picture(png, told, width=SIDE, pixelated=True).text}{note}</td>")
            name = marked if place == 0 else "student"
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Feature maps"><table class="maps">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    image = picture(found.image, f"The image {found.key}", width=SIDE)
    return figure(joined(image, Markup(table)), f"{run.name}, image {found.key}.")
