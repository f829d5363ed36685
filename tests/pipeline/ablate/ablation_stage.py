"""A stand-in for `sak-cli distill`: keeps a run directory as the real one does, in milliseconds a step.

STAGE_LOG: a file that gets a line a call. STAGE_FAIL: teachers at whose name it fails. STAGE_SECONDS: of a step.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main():
    given = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))
    out, teachers = Path(given["--out"]), given.get("--teachers", "all")
    asked = "resume" if "--resume" in sys.argv else "overwrite" if "--overwrite" in sys.argv else "new"
    with Path(os.environ["STAGE_LOG"]).open("a") as file:
        file.write(f"{sys.argv[1]} {teachers} {asked}\n")
    if teachers in os.environ.get("STAGE_FAIL", "").split():
        sys.stderr.write(f"sak-cli: no features of teacher '{teachers}'\n")
        sys.exit(1)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    checkpoint = out / "checkpoints" / "last"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    about = out / "run.json"
    told = json.loads(about.read_text()) if about.is_file() else {"stage": "distill", "sessions": []}
    told["reads"] = {"columns": [f"columns/{each}-0123/abcd" for each in teachers.split(",")], "random": []}
    told["sessions"].append({"started": "2026-01-01T00:00:00+0000"})
    about.write_text(json.dumps(told))
    while step < 10 and not stopped:
        time.sleep(float(os.environ.get("STAGE_SECONDS", "0")))
        step += 1
        sys.stdout.write(f"{step} of 10 steps\n")
        sys.stdout.flush()
        checkpoint.write_text(str(step))
    recipe = Path(given["--config"]).read_text()
    seed = next(int(line.split(":")[1]) for line in recipe.splitlines() if "seed:" in line)
    line = {"step": step, "evaluation": True, "rep_sim": len(teachers) / 100 + seed / 1000, "images_per_second": 8.0}
    (out / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    told["sessions"][-1] |= {"ended": "2026-01-01T00:01:00+0000", "stopped": bool(stopped), "step": step}
    about.write_text(json.dumps(told))
    sys.exit(143 if stopped else 0)


main()
