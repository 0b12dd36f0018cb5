"""How far `dvc repro` is: which stage of how many, what it took, and what is left at most.

DVC skips whatever did not change, so all that a stage needs lies behind it.  Times are those of this machine, in
.dvc/tmp, which git ignores.  Nothing is said under another runner than DVC.
"""

import json
import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from statistics import fmean

from her2core.config import Study, stages_of
from her2core.records import whole


def needs(study: Study) -> dict[str, set[str]]:
    """{stage: all stages that come before it} of a study; each run of a matrix is a stage, as in DVC."""
    found, written = {}, {}
    for stage, definition in stages_of(study.folder / "dvc.yaml").items():
        for run in study.runs if "matrix" in definition else [""]:
            read, *outs = ([*_paths(definition.get(k, ()), study.name, run)] for k in ("deps", "outs", "metrics"))
            direct = {s for s, paths in written.items() if any(_meet(r, p) for r in read for p in paths)}
            name = f"{stage}@{run}" if run else stage
            found[name], written[name] = direct.union(*(found[s] for s in direct)), sum(outs, [])
    return found


def _paths(entries, name, run):
    for entry in entries:
        path = next(iter(entry)) if isinstance(entry, dict) else entry
        yield path.replace("${name}", name).replace("${item.run}", run) + "/"


def _meet(one, other):
    return one.startswith(other) or other.startswith(one)


def outlook(stages: Collection[str], seconds: dict[str, float]) -> str:
    """What `stages` may still take, in words; a run that was never timed is taken for as long as the others."""
    runs = [s for stage, s in seconds.items() if "@" in stage]
    known = (dict.fromkeys((stage for stage in stages if "@" in stage), fmean(runs)) if runs else {}) | seconds
    guesses = [known[stage] for stage in stages if stage in known]
    words = f"stages left at most: {len(stages)}"
    return f"{words}, of which {len(guesses)} need about {sum(guesses) / 60:.1f} min" if guesses else words


@contextmanager
def progress(study: Study) -> Iterator[None]:
    """Say before a stage which one it is and after it what it took and what is left, on stderr."""
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    before = needs(study) if stage else {}
    if stage not in before:
        yield
        return
    path, here = study.top / ".dvc/tmp/her2-progress.json", f"{study.name} {os.getppid()}"
    notes, start = {"here": here, "ran": [], "seconds": {}}, time.monotonic()
    with suppress(OSError, ValueError):
        notes |= json.loads(path.read_text("utf-8"))
    ran = notes["ran"] if notes["here"] == here else []
    behind = before[stage].union(ran, *(before[s] for s in ran)) - {stage}
    print(f"stage {len(behind) + 1} of {len(before)}: {stage}", file=sys.stderr)
    yield
    seconds = notes["seconds"].setdefault(study.name, {})
    seconds[stage] = round(time.monotonic() - start, 1)
    with suppress(OSError), whole(path, str(os.getpid())) as part:
        part.write_text(json.dumps(notes | {"here": here, "ran": [*ran, stage]}), "utf-8")
    left = outlook(before.keys() - behind - {stage}, seconds)
    print(f"{stage}: {seconds[stage]:.0f} s; {left}", file=sys.stderr)
