"""The commands of the quickstart, the tables and the comparisons run, in their order, on a tiny demo.

Real data, specs and recipes are replaced by the demo's, runs are cut to two steps, and everything is on the CPU.
"""

import re
import shlex

import pytest

import cli
from pipeline.demo.data.write import write_demo_data
from tests.docs.pages import ROOT, code_blocks, page
from tests.docs.test_commands import command_lines

SWIN = (
    '--set "student.stem={embed: 8, depths: [1, 1, 1, 1], heads: [1, 1, 2, 2], window: 2}" '
    "--set student.weights=random:0"
)
RADIO = (
    '--set "student.stem={width: 24, depth: 4, heads: 3, registers: 2, layer_scale: true, class_position: false}" '
    "--set student.weights=random:0"
)
BEFORE = (
    "extract --spec cache_specs/sak_b.yaml --data /data/imagenet/train --cache ./cache",
    "distill --cache ./cache --out ./runs/b --config recipes/distill/sak_b_from_b.yaml",
    "finetune --init ./runs/b --dataset pascal-context --data /data/PASCALContext --out ./runs/b-pascal "
    "--config recipes/finetune/pascal_b.yaml",
)
"""What the pages of comparisons take for granted."""

INSTEAD = (
    (r"/data/imagenet/train", "real/imagenet"),
    (r"/data/imagenet/val", "held-out/imagenet"),
    (r"/data/imagenet(?=\s|$)", "real/imagenet"),
    (r"/data/(PASCALContext|NYUDv2)", "real"),
    (r"cache_specs/sak_\w+\.yaml", "cache_specs/demo.yaml"),
    (r"my_held_out\.yaml", "cache_specs/demo_val.yaml"),
    (r"recipes/distill/many_to_one\.yaml", "recipes/distill/demo.yaml --set student.adapters=false"),
    (r"recipes/distill/sak_\w+\.yaml", "recipes/distill/demo.yaml"),
    (r"recipes/distill/swin_s_from_b\.yaml", f"recipes/distill/demo.yaml {SWIN}"),
    (r"recipes/finetune/(pascal|nyud)_(swin_)?\w\.yaml", r"recipes/finetune/demo_\1.yaml"),
    (r"--init teacher:(dinov2|clip)-b", r"--init teacher:\1 --spec cache_specs/demo.yaml"),
    (r"--init teachers:dinov2-b,clip-b,sam-b", "--init teachers:dinov2,clip,sam --spec cache_specs/demo.yaml"),
    (r"--set student\.stem=vit_large_patch16_radio_v3\.c_radio", RADIO),
    (r"--set student\.stem=theia_base_patch16_224\.cdiv", "--set student.weights=random:0"),
    (r"--init imagenet(?=.*--spec)", "--init random:0"),
    (r"--fraction 0\.25", "--fraction 0.9"),
    (r" 1281167", " 40"),
)
SHORT = "--steps 2 --device cpu --set training.schedule.kind=constant --set data.workers=0"
MORE = {
    "extract": "--device cpu --batch-size 8",
    "distill": f"{SHORT} --batch-size 8",
    "finetune": f"{SHORT} --batch-size 2 --set evaluation.limit=1 --set evaluation.workers=0 --set data.size=[64,64]",
    "evaluate ./probes": "--device cpu --workers 0 --limit 8 --pictures 1 --no-boundary",
    "evaluate": "--device cpu --workers 0 --limit 1 --pictures 1 --no-boundary",
    "predict": "--device cpu --workers 0",
    "cache check-live": "--device cpu",
}


def is_left_out(line: str) -> bool:
    """Nobody has the authors' files here; the order of `doctor`'s findings is the machine's."""
    return "import-checkpoint" in line or "authors" in line or line.startswith(("doctor", "--", "ablate"))


def at_small_size(line: str) -> list[str]:
    """The command line on the demo's data."""
    for real, small in INSTEAD:
        line = re.sub(real, small, line)
    if "--resume" in line:
        line = f"{line} --force"
    if "--baseline-run" in line:
        line = f"{line} --tasks normals"  # after two steps a baseline's mIoU may be 0, over which there is no gain
    more = next((each for words, each in MORE.items() if line.startswith(words)), "")
    return shlex.split(f"{line} {more}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name in ("cache_specs", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    write_demo_data(folder / "real", images=40, scenes=8, size=64, processes=1)
    write_demo_data(folder / "held-out", images=40, scenes=2, size=64, seed=1, processes=1)
    (folder / "holiday").mkdir()
    photos = sorted((folder / "real").rglob("*.jpg"))
    (folder / "photo.jpg").write_bytes(photos[0].read_bytes())
    (folder / "holiday" / "beach.jpg").write_bytes(photos[1].read_bytes())
    return folder


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("pages", "before", "at_least"),
    [
        (("quickstart.md", "tables.md"), (), 20),
        (("compare.md", "decoders.md", "weighting.md", "export.md"), BEFORE, 27),
    ],
    ids=["tables", "comparisons"],
)
def test_the_pages_commands_run_in_their_order(place, monkeypatch, capfd, pages, before, at_least):
    monkeypatch.chdir(place)
    monkeypatch.setenv("SAK_LABEL_CACHE", str(place / "labels"))
    blocks = [block for name in pages for block in code_blocks(page(name))]
    told = (line for block in blocks for line in command_lines(f"\n\n{_indented(block)}\n"))
    lines = list(dict.fromkeys((*before, *told)))
    ran = 0
    for line in lines:
        if is_left_out(line):
            continue
        overwriting = line.startswith(("distill", "finetune")) and "--resume" not in line
        asked = [*at_small_size(line), *(["--overwrite"] if overwriting else [])]
        with pytest.raises(SystemExit) as stop:
            cli.main(asked)
        said = capfd.readouterr()
        assert stop.value.code == 0, f"sak-cli {shlex.join(asked)}\n{said.err[-2000:]}"
        ran += 1
    assert ran > at_least


def _indented(block: str) -> str:
    return "".join(f"    {line}\n" if line else "\n" for line in block.splitlines())
