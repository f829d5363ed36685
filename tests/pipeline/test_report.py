"""The report: what stands in it, what is left out and said, that a run's text is not trusted; in a browser too."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.report import ReportConfig, write_report
from pipeline.report.charts import data_url, heat_map, line_chart, number, radar, scatter
from pipeline.report.overview import starts_from
from pipeline.report.runs import ReportedRun
from sak.errors import SakError, UsageError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SESSION = {"started": "2026-01-01T00:00:00+0000", "ended": "2026-01-01T00:01:00+0000", "stopped": False,
           "packages": {"torch": "2"}}  # fmt: skip
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def fine_tuned(place, *, kind="sak", gates=True, name="demo-nyud", shift=0.0):
    """A fine-tuned run's directory as evaluation leaves it, without its weights."""
    (place / "figures").mkdir(parents=True)
    tasks = {"semseg": 20.0 + shift, "depth": 0.8, "normals": 30.0, "edge": 40.0 + shift}
    told = {"stage": "finetune", "kind": kind, "dataset": name, "tasks": list(tasks), "teachers": {},
            "reads": {"images": 8, "live": {}}, "sessions": [SESSION]}  # fmt: skip
    weights = {"1": {task: [0.25, 0.75] for task in tasks}}
    stored = {"evaluation": {"tasks": {task: {"value": value} for task, value in tasks.items()}}, "trivial": None,
              "gates": {"experts": ["TAS", "clip"], "images": 3, "weights": weights} if gates else None}  # fmt: skip
    (place / "run.json").write_text(json.dumps(told))
    (place / "config.yaml").write_text(yaml.safe_dump({"device": "cpu", "recipe": {"note": EVIL}}))
    lines = [{"step": step, "loss": 2.0 / step, "task/semseg": 1.0 / step} for step in range(1, 6)]
    (place / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (place / "evaluation-val.json").write_text(json.dumps(stored))
    return place


@pytest.fixture
def report(tmp_path):
    """`report(*runs)` writes a page and gives its text."""

    def go(*runs, maps=False):
        write_report(ReportConfig(tuple(runs), tmp_path / "report.html", maps=maps, overwrite=True), lambda line: None)
        return (tmp_path / "report.html").read_text()

    return go


def test_every_part_that_a_run_lacks_is_said(report, distilled):
    text = html.unescape(report(distilled))
    for sentence in (
        "Left out: no fine-tuned run was evaluated",
        "Left out: no run measured rep_sim",
        "Left out: --no-maps was given",
        "Left out: no run has figures/predictions.png",
        "Left out: no run with routers was evaluated",
    ):
        assert sentence in text
    assert "RANDOM weights: clip, dinov2, sam" in text


def test_maps_of_teachers_and_student_stand_side_by_side(report, distilled):
    text = report(distilled, maps=True)
    for teacher in ("dinov2", "clip", "sam"):
        for who in ("teacher", "student"):
            told = f"{who}'s map of {teacher}, level 1"
            assert re.search(rf'<img src="data:image/png;base64,[^"]+" alt="{told}', text)


def test_metrics_stand_beside_the_baseline_with_delta_m(report, tmp_path):
    runs = (fine_tuned(tmp_path / "sak", shift=2.0), fine_tuned(tmp_path / "single", kind="single-task", gates=False))
    text = report(*runs)
    assert "relative gains over single (single-task). sak is 3.75 % ahead of it, better at 2 of 4 tasks." in text
    assert ">loss, unweighted<" in text
    assert "<strong>22.00</strong>" in text
    gain = (2 / 20 + 2 / 40) / 4 * 100
    assert f">{gain:#.3g}<" in text
    assert "Gates of sak, level 1" in text
    assert "Metrics on demo-nyud as shares of the best" in text
    assert "The paper has no results on demo-nyud" in text


def test_a_run_says_what_it_starts_from_and_which_teachers_it_had(report, tmp_path, distilled):
    place = fine_tuned(tmp_path / "sak")
    told = json.loads((place / "run.json").read_text())
    told |= {"teachers": ["clip"], "reads": {"images": 8, "live": {"clip": {"model": "demo/clip"}}}}
    (place / "run.json").write_text(json.dumps(told))
    (place / "config.yaml").write_text(yaml.safe_dump({"init": str(distilled), "device": "cpu"}))
    text = report(place, distilled)
    assert f'<td class="text">{distilled.name}</td>' in text
    assert "clip (demo/clip)" in text
    (place / "config.yaml").write_text(yaml.safe_dump({"init": "/gone/elsewhere"}))
    assert '<td class="text">elsewhere</td>' in report(place, distilled)


def test_the_start_is_a_run_of_the_page_only_where_it_is_that_one(tmp_path):
    def run(place, stage="distill", **config):
        return ReportedRun(str(place.relative_to(tmp_path)), place, config, {"stage": stage}, ())

    distilled = [run(tmp_path / place / "runs" / "distill") for place in ("a", "b")]

    def start(init, place="b/runs/sak"):
        tuned = run(tmp_path / place, "finetune", init=init)
        return starts_from(tuned, [tuned, *distilled])

    assert start("runs/distill") == start("somewhere/runs/distill/checkpoints/best") == "b/runs/distill"
    assert start(str(tmp_path / "a" / "runs" / "distill")) == "a/runs/distill"
    assert start("a/runs/distill") == start("a/runs/distill", "c/sak") == "a/runs/distill"
    assert start("runs/distill", "c/sak") == "distill"  # either may be meant
    (tmp_path / "gone" / "runs" / "distill").mkdir(parents=True)
    assert start(str(tmp_path / "gone" / "runs" / "distill")) == "distill"
    assert start("teacher:demo/dino") == "teacher:demo/dino"
    assert start("/") == "/"


def test_losses_of_tasks_are_not_compared_with_those_that_hold_distillation(report, tmp_path):
    runs = fine_tuned(tmp_path / "sak"), fine_tuned(tmp_path / "multi", kind="multi-task")
    (runs[0] / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "distillation": 1.0}\n')
    assert "That of sak has the distillation loss in it, the others&#39; only that of the tasks." in report(*runs)


def test_runs_measured_on_different_images_are_not_to_be_compared(report, tmp_path):
    runs = fine_tuned(tmp_path / "sak"), fine_tuned(tmp_path / "multi", kind="multi-task")
    for run, images in zip(runs, ("aa", "bb"), strict=True):
        stored = json.loads((run / "evaluation-val.json").read_text())
        (run / "evaluation-val.json").write_text(json.dumps({**stored, "of": {"images": images}}))
    assert "measured on different images; do not compare" in report(*runs)
    assert "measured on different images" not in report(runs[0])


def test_what_extraction_took_is_told(report, distilled):
    cache = json.loads((distilled / "run.json").read_text())["reads"]["cache"]
    reports = Path(cache) / "reports"
    reports.mkdir(exist_ok=True)
    whole = {"started": "2030-01-02T03:04:05+00:00", "status": "complete", "images": 600, "seconds": 60.0,
             "nbytes": {"clip": 2000}, "blocks": [{"teachers": ["clip"]}]}  # fmt: skip
    written = [reports / "2030.json", reports / "2031.json", reports / "2032.json"]
    try:
        written[0].write_text(json.dumps(whole))
        written[1].write_text("{}")
        written[2].write_text(json.dumps({**whole, "images": 10**400}))
        text = report(distilled)
    finally:
        for each in written:
            each.unlink(missing_ok=True)
    assert '2030-01-02 03:04</th><td class="text">clip</td><td class="text">complete</td><td>600</td>' in text
    assert "2031.json cannot be read" in text
    assert "2032.json cannot be read" in text


def test_the_papers_numbers_stand_beside_its_own_data_sets(report, tmp_path):
    text = report(fine_tuned(tmp_path / "sak", name="nyud"))
    assert "SAK (paper, L)" in text
    assert ">14.1<" in text
    assert "In the paper's rows it is the paper's own, over its single-task baseline." in text


def test_nothing_of_a_run_is_taken_for_html(report, tmp_path):
    place = fine_tuned(tmp_path / "<b>run</b>")
    told = json.loads((place / "run.json").read_text())
    told["kind"] = told["teachers"] = EVIL
    (place / "run.json").write_text(json.dumps(told))
    text = report(place)
    assert "<script" not in text
    assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert "<b>run" not in text


def test_the_page_asks_nobody_for_anything(report, distilled):
    text = report(distilled, maps=True)
    assert not re.findall(r"https?://", text)
    assert all(place.startswith("data:") for place in re.findall(r'(?:src|href)="([^"#][^"]*)"', text))
    assert "default-src 'none'" in text


def test_damaged_files_are_said_and_the_rest_is_shown(report, tmp_path):
    place = fine_tuned(tmp_path / "run")
    (place / "config.yaml").write_text("a: [")
    (place / "metrics.jsonl").write_text('{"step": 1, "loss": }\n')
    text = report(place)
    assert "config.yaml cannot be read" in text
    assert "metrics.jsonl cannot be read" in text


def test_places_that_are_no_runs_and_pages_that_are_there_are_refused(tmp_path, distilled):
    with pytest.raises(UsageError, match="is no run and holds none"):
        write_report(ReportConfig((tmp_path,), tmp_path / "r.html"), print)
    with pytest.raises(UsageError, match="no such folder"):
        write_report(ReportConfig((tmp_path / "none",), tmp_path / "r.html"), print)
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(UsageError, match="replace it with --overwrite"):
        ReportConfig((distilled,), tmp_path / "r.html")
    with pytest.raises(SakError, match=r"r\.html"):
        write_report(ReportConfig((distilled,), tmp_path / "r.html" / "page.html"), print)


def test_a_studys_runs_are_called_by_row_and_seed_and_its_table_is_shown(report, tmp_path):
    study = tmp_path / "study"
    fine_tuned(study / "runs" / "finetune-0123")
    fine_tuned(study / "runs" / "finetune-left-over")
    (study / "runs.csv").write_text("row,seed,run finetune\nDINOv2,3,elsewhere/runs/finetune-0123\n")
    (study / "results.csv").write_text("row,seeds,semseg,semseg std,keys\nDINOv2,1,20.5,0.25,a\n")
    text = report(study)
    assert "DINOv2, seed 3, finetune" in text
    assert "left-over" not in text
    assert "20.50 ± 0.25" in text


def test_rows_of_two_studies_with_one_name_are_two_runs(report, tmp_path):
    studies = [tmp_path / place / "study" for place in ("one", "two")] + [tmp_path / "other"]
    for place, study in enumerate(studies):
        fine_tuned(study / "runs" / "finetune-0123", shift=place)
        (study / "runs.csv").write_text("row,seed,run finetune\nDINOv2,0,runs/finetune-0123\n")
    text = report(*studies)
    table = text[text.index("demo-nyud: metrics") :]
    assert all(f">{20 + place}.00<" in table.replace("strong>", "b>") for place in range(3))
    assert "other: DINOv2, seed 0, finetune" in text
    assert f"{studies[0]}/runs/finetune-0123: study: DINOv2, seed 0, finetune" in text


def test_a_study_of_many_rows_says_how_many_are_shown_and_a_damaged_one_is_said(report, tmp_path):
    run, study = fine_tuned(tmp_path / "run"), tmp_path / "study"
    fine_tuned(study / "run")
    lines = "".join(f"row {number},0.5,{number},0.5,yes\n" for number in range(201))
    (study / "results.csv").write_text("row,semseg,bytes_per_image,rep_sim,random\n" + lines)
    text = report(run, study)
    assert "Shown are 200 of 201 rows" in text
    assert "row 199 RANDOM" in text
    (study / "results.csv").write_bytes(b"row\n\xff\n")
    assert "results.csv cannot be read" in report(run, study)


def test_numbers_that_are_none_and_parts_that_are_strange_leave_the_page(report, tmp_path):
    whole, place = fine_tuned(tmp_path / "whole", kind="multi-task"), fine_tuned(tmp_path / "run")
    stored = json.loads((place / "evaluation-val.json").read_text())
    tasks = stored["evaluation"]["tasks"]
    for value in (float("nan"), float("inf"), "x", [], None):
        tasks["semseg"]["value"] = value
        (place / "evaluation-val.json").write_text(json.dumps(stored))
        text = report(place, whole, fine_tuned(tmp_path / f"more {value}", shift=1.0))
        assert "<strong>21.00</strong>" in text
        assert "as shares of the best" in text
    for part in ({"tasks": None}, {"tasks": {"semseg": 3}}, 3):
        for gates in ({"images": "x"}, {"weights": {"1": {}}}, {"weights": {"1": {"semseg": [0.5]}}}):
            changed = {**stored, "evaluation": part, "gates": {**stored["gates"], **gates}}
            (place / "evaluation-val.json").write_text(json.dumps(changed))
            assert "Left out: no run with routers" in report(place)


def test_what_stands_against_a_baseline_is_true_of_odd_ones(report, tmp_path):
    base, same = fine_tuned(tmp_path / "base", kind="multi-task"), fine_tuned(tmp_path / "same")
    assert "same (sak) is level with it, better at 0 of 4 tasks." in report(base, same)
    many = [fine_tuned(tmp_path / f"run{number}", shift=1.0) for number in range(9)]
    assert "ahead of it" not in report(base, *many)
    stored = json.loads((base / "evaluation-val.json").read_text())
    stored["evaluation"]["tasks"]["semseg"]["value"] = 0
    (base / "evaluation-val.json").write_text(json.dumps(stored))
    text = report(base, same)
    assert "base (multi-task) has no metric, or 0, in some of the tasks, so there is no delta_m over it." in text
    assert "not measured on all" not in text


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("run.json", {"student": EVIL, "teachers": None}),
        ("run.json", {"reads": {"live": 3, "cache": "/none", "columns": 3}}),
        ("run.json", {"reads": {"cache": "\ud800"}}),
        ("run.json", {"reads": {"cache": "a\0b"}}),
        ("run.json", {"kind": "\ud800", "sessions": [[]]}),
        ("config.yaml", {"init": "/" + "x" * 5000}),
        ("config.yaml", {"init": "a\0b", "recipe": {"student": []}}),
        ("evaluation-val.json", {"evaluation": {"images": "²", "tasks": {"delta_m": {"value": 3}}}}),
        ("evaluation-val.json", {"evaluation": {"images": 3, "tasks": {"semseg": {"value": 10**400}}}}),
        ("metrics.jsonl", {"step": 1, "evaluation": True, "rep_sim": "x", "rep_sim/clip": []}),
        ("metrics.jsonl", {"step": 10**400, "loss": 1.0, "images_per_second": 1.0}),
    ],
)
def test_files_that_say_other_things_than_they_should_leave_a_page(report, tmp_path, name, changed):
    place, base = fine_tuned(tmp_path / "run"), fine_tuned(tmp_path / "base", kind="multi-task")
    told = json.loads((place / name).read_text()) if name.endswith(".json") else {}
    (place / name).write_text(json.dumps(told | changed) + "\n")
    text = report(place, base)
    assert "demo-nyud" in text
    assert "<script" not in text


def test_numbers_of_a_table_keep_their_digits():
    values = (0, -0.0, 22.0, 3.75, 1234.5, 82592.75, 99999.96, 1e6, 1.5e-5, float("nan"), None, "x")
    assert [number(value) for value in values] == [
        "0", "0", "22.00", "3.750", "1,234", "82,593", "100,000", "1,000,000", "1.500e-05", "-", "-", "-",
    ]  # fmt: skip
    assert number(1234.5, 3) == "1,234"


def test_charts_survive_what_measurements_may_be():
    said = {"title": "t", "caption": "c"}
    for value in (float("nan"), float("inf"), 1e308, -1e308):
        assert line_chart({"a": [(0, value)]}, **said, y="y") is None
        assert scatter([("a", (0, value))], **said, x="x", y="y") is None
        assert "nan" not in heat_map(["a"], ["b"], [[0.5]], **said).svg
        assert "<text" in heat_map(["a"], ["b"], [[value]], **said).svg
    for points in ([(0, 1.0)], [(0, 5.0), (1, 5.0)], [(0, 0.0)], [(1e29, -1e29), (2.0**63, 1e-300)]):
        assert "<path" in line_chart({"a": points}, **said, y="y").svg
    assert "<text" in heat_map(["a"], ["b"], [[0.0]], **said).svg
    assert "<path" in radar(["a", "b", "c"], {"x": [1.0, 0.5, 0.0], "y": [-3.0, 7.0, 1.0]}, **said).svg


def test_names_in_charts_are_text_whatever_they_are():
    names = (EVIL, "$\\frac$", "x" * 5000, "\ud800", "層", "\0", "_", "")
    for name in names:
        for chart in (heat_map([name], [name], [[1.0]], title=name, caption=name),
                      scatter([(name, (1.0, 2.0))], title=name, caption=name, x="x", y="y")):  # fmt: skip
            assert not re.search("<(?!/?(g|path|text|defs|use|clipPath|rect)[ >/])", chart.svg)
            assert len(chart.svg) < 10_000
    assert "$\\frac$" in heat_map([names[1]], ["a"], [[1.0]], title="t", caption="c").svg


def test_a_chart_is_the_same_each_time_and_its_colours_are_the_pages():
    first, second = (line_chart({"a": [(0, 1.0), (1, 2.0)]}, title="t", caption="c", y="y") for _ in range(2))
    assert first == second
    assert {"var(--c0)", "var(--faint)", "var(--line)"} <= set(re.findall(r"var\(--\w+\)", first.svg))
    assert not re.findall('#[0-9a-f]{6};|#[0-9a-f]{6}"', first.svg)


def test_a_picture_of_the_page_is_a_png():
    with pytest.raises(ValueError, match="is a PNG"):
        data_url(b"<svg onload=alert(1)>")


MEASURE = """<script>
const sizes = [...document.querySelectorAll('svg, img')].map(e => e.getBoundingClientRect());
document.title = JSON.stringify({count: sizes.length, flat: sizes.filter(r => r.width < 8 || r.height < 8).length,
  wide: document.documentElement.scrollWidth - innerWidth, dark: getComputedStyle(document.body).backgroundColor});
</script></body>"""


def browse(page, profile, width, *options):
    """(DOM as text, what the browser said) of a page."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--enable-logging=stderr", f"--user-data-dir={profile}", f"--window-size={width},900", *options,
               "--dump-dom", page.as_uri()]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is looked at in one")
@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_every_figure_has_size_and_nothing_is_complained_of(report, distilled, tmp_path, width, scheme):
    text = report(distilled, fine_tuned(tmp_path / "sak"), fine_tuned(tmp_path / "multi", kind="multi-task"), maps=True)
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    _, said = browse(tmp_path / "report.html", tmp_path / "profile", width, *dark)
    assert "CONSOLE" not in said
    measured = tmp_path / "measured.html"
    measured.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", text).replace("</body>", MEASURE))
    dom, _ = browse(measured, tmp_path / "profile", width, *dark)
    found = json.loads(html.unescape(re.search(r"<title>(\{.*?\})</title>", dom)[1]))
    assert found["count"] > 20
    assert found["flat"] == 0
    assert found["wide"] <= 0
    assert found["dark"] == ("rgb(18, 22, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
