"""The committed results rebuilt, and compared file by file:  make verify   or   make verify STUDY=instrument

In .verify, which git ignores, lie two clones of HEAD: `committed`, and `rebuilt`, whose results were deleted before
DVC made them again.  A run that is stopped goes on where it was; after another commit it begins anew.

Accepted are the same bytes, and numbers whose last digits differ.  Figures, pages, weights and arrays with other
bytes are told, and judged by the tables that come from the same numbers.  On a processor that does not give the
committed bytes (benchmarks/machine.py) other numbers and digests are accepted too, if each number that has an
interval in the committed results lies inside it; counts and words, and so verdicts, have to be the same.  What no
stage writes, such as `tuning.csv`, is not rebuilt.
"""

import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from house import TOP, environment_in
from ruamel.yaml import YAML

FOLDER = TOP / ".verify"
RELATIVE, ABSOLUTE = 1e-5, 2e-6  # of numbers that differ in the last digits; tables have six decimals
_ESTIMATES = ("auc", "difference", "value", "inside_lesion", "observed")  # what `low` and `high` belong to
_DRAWN = {".png": "figure", ".pdf": "figure", ".ipynb": "notebook as it ran", ".html": "page", ".md": "document"}
SAME, DIGITS, TOLD, INSIDE, WRONG = "same bytes", "last digits", "told", "inside intervals", "differs"


@dataclass(frozen=True)
class Finding:
    """What became of one artefact of a stage.  kind: SAME, DIGITS, TOLD, INSIDE or WRONG."""

    stage: str
    artefact: str
    kind: str
    words: str = ""


# --- two numbers, two tables --------------------------------------------------------------------------------


def _number(text: Any) -> float | None:
    """A cell or leaf as a number, None where it is none."""
    try:
        return None if isinstance(text, bool | None) else float(text)
    except (TypeError, ValueError):
        return None


def _kind(text: Any) -> str:
    if re.fullmatch("[0-9a-f]{32,64}", str(text)):
        return "digest"
    return "word" if _number(text) is None else "count" if re.fullmatch(r"-?\d+", str(text)) else "number"


def _close(one: Any, other: Any) -> bool:
    pair = _number(one), _number(other)
    return one == other or None not in pair and math.isclose(*pair, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _interval(row: dict[str, Any], name: str) -> tuple[float, float] | None:
    """The committed interval of a number among the cells of its row, None where it has none."""
    own = (f"{name}_low", f"{name}_high")
    first = next((estimate for estimate in _ESTIMATES if estimate in row), None)
    ends = own if own[0] in row else ("low", "high") if name == first and "low" in row else ()
    found = [_number(row[end]) for end in ends if end in row]
    return (found[0], found[1]) if len(found) == 2 and None not in found else None


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """A CSV's lines, or a JSON's objects by their place, as {name: value}."""
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return {f"line {n}": row for n, row in enumerate(csv.DictReader(file), 2)}
    return dict(_objects(json.loads(path.read_text("utf-8")), ""))


def _objects(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    items = value if isinstance(value, dict) else dict(enumerate(value))
    leaves = {str(k): v for k, v in items.items() if not isinstance(v, dict | list)}
    yield place or "top", leaves
    for key, inner in items.items():
        if isinstance(inner, dict | list):
            yield from _objects(inner, f"{place}.{key}".strip("."))


def compare_tables(committed: Path, rebuilt: Path) -> tuple[str, str]:
    """Two CSV or JSON files whose bytes differ: DIGITS, INSIDE or WRONG, and in words where and how much."""
    first, second = _rows(committed), _rows(rebuilt)
    if [(place, *row) for place, row in first.items()] != [(place, *row) for place, row in second.items()]:
        return WRONG, f"other rows or columns: {len(first)} committed, {len(second)} rebuilt"
    cells = [(p, name, value, second[p][name]) for p, row in first.items() for name, value in row.items()]
    moved = [cell for cell in cells if not _close(*cell[2:])]
    if not moved:
        return DIGITS, f"up to {RELATIVE:g} of the number, or {ABSOLUTE:g}"
    place, name, old, new = moved[0]
    words = f"{len(moved)} of {len(cells)} values; {place}, {name}: {old}, rebuilt {new}"
    for place, name, old, new in moved:
        value, kinds = _number(new), {_kind(old), _kind(new)}
        if kinds not in ({"number"}, {"number", "count"}, {"digest"}):
            return WRONG, f"{place}, {name}: {old}, rebuilt {new}"
        ends = _interval(first[place], name) if value is not None else None
        if ends and not all(ends[0] <= x <= ends[1] for x in (_number(old), value)):
            return WRONG, f"{place}, {name}: {old} ({ends[0]:g} to {ends[1]:g}), rebuilt {new}, outside"
    return INSIDE, words


# --- a study's lock and files -------------------------------------------------------------------------------


def _lock(top: Path, study: str) -> dict[str, dict]:
    """{stage: what DVC recorded of it}; nothing where there is no lock."""
    path = folder_of(top, study) / "dvc.lock"
    return YAML(typ="safe").load(path)["stages"] if path.is_file() else {}


def folder_of(top: Path, study: str) -> Path:
    """Where the study's `dvc.yaml` lies in a clone."""
    return top / "studies" / study if (top / "studies" / study).is_dir() else top


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}".strip("."))
    else:
        yield place, value


def _made_with(stage: dict) -> dict[str, Any]:
    """What a stage's record says that it was made with: parameters and code."""
    parameters = {k: v for values in stage.get("params", {}).values() for k, v in _leaves(values, "")}
    code = {d["path"]: d["md5"] for d in stage["deps"] if not d["path"].startswith(("data", "models", "results"))}
    return {f"parameter {k}": v for k, v in parameters.items()} | {f"code {k}": v for k, v in code.items()}


def _recorded(committed: dict, rebuilt: dict) -> Iterator[Finding]:
    """Stages, parameters and code that the two locks tell differently, each once with its stages."""
    for stage in sorted(committed.keys() ^ rebuilt.keys()):
        yield Finding(stage, "stage", WRONG, "not rebuilt" if stage in committed else "not in the committed lock")
    stages = defaultdict(list)
    for stage in sorted(committed.keys() & rebuilt.keys()):
        old, new = _made_with(committed[stage]), _made_with(rebuilt[stage])
        for what in old.keys() | new.keys():
            if (pair := (old.get(what), new.get(what)))[0] != pair[1]:
                shown = "other content" if what.startswith("code") else f"{pair[0]}, rebuilt with {pair[1]}"
                stages[what, shown].append(stage)
    for (what, shown), where in sorted(stages.items()):
        yield Finding(where[0], what, WRONG, shown + (f" (and {len(where) - 1} other stages)" if where[1:] else ""))


def _files(top: Path, path: str) -> dict[str, Path]:
    """The file of an output, or all files in it, by their path."""
    inside = sorted((top / path).rglob("*")) if (top / path).is_dir() else [top / path]
    return {p.relative_to(top).as_posix(): p for p in inside if p.is_file()}


def recorded_digest(path: Path) -> str:
    """What DVC's lock calls a file or folder: its MD5, of a folder that of the list of its files."""
    if not path.is_dir():
        return hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else ""
    files = [(p.relative_to(path).as_posix(), recorded_digest(p)) for p in sorted(path.rglob("*")) if p.is_file()]
    listed = json.dumps([{"md5": md5, "relpath": name} for name, md5 in files])
    return hashlib.md5(listed.encode()).hexdigest() + ".dir"


def _compare_file(stage: str, name: str, old: Path | None, new: Path | None, by_hand: bool) -> Finding:
    """One file in both clones; by_hand: its output is not what the committed lock says."""
    if old is None or new is None:
        return Finding(stage, name, WRONG, "missing" if old is None else "not rebuilt")
    if old.read_bytes() == new.read_bytes():
        return Finding(stage, name, SAME)
    what = "digests of weights" if "/weights/" in name else _DRAWN.get(old.suffix)
    kind, words = (TOLD, what) if what else compare_tables(old, new)
    if by_hand:
        return Finding(stage, name, WRONG, f"changed by hand, as the committed lock has another digest: {words}")
    return Finding(stage, name, kind, words)


def compare(committed: Path, rebuilt: Path, study: str = "embedded") -> list[Finding]:
    """Two clones, the second with its results made anew: a finding for every artefact, and for all that is odd."""
    before, after = _lock(committed, study), _lock(rebuilt, study)
    findings = [*_recorded(before, after)]
    for stage, recorded in before.items():
        made = {out["path"]: out["md5"] for out in after.get(stage, {}).get("outs", [])}
        for out in recorded["outs"]:
            if not (path := out["path"]).startswith(("results/", "figures/")):  # arrays and weights are not in git
                same = made.get(path) == out["md5"]
                findings.append(Finding(stage, path, SAME if same else TOLD, "" if same else "arrays or weights"))
                continue
            old, new = _files(committed, path), _files(rebuilt, path)
            by_hand = recorded_digest(committed / path) != out["md5"]
            names = sorted({*old, *new} or {path})
            findings += [_compare_file(stage, name, old.get(name), new.get(name), by_hand) for name in names]
    return findings


def report(findings: list[Finding], same_machine: bool) -> tuple[list[str], bool]:
    """The findings as a table by stage, what differs line by line, one verdict; and whether it is good.

    same_machine: whether this one gives the committed bytes; then other numbers are not accepted."""
    kinds = (SAME, DIGITS, TOLD, INSIDE, WRONG)
    stages = {f.stage: Counter(g.kind for g in findings if g.stage == f.stage) for f in findings}
    lines = [f"{'stage':28}" + "".join(f"{kind:>17}" for kind in kinds)]
    lines += [f"{stage:28}" + "".join(f"{n[kind] or '–':>17}" for kind in kinds) for stage, n in stages.items()]
    order = sorted((f for f in findings if f.kind != SAME), key=lambda f: -kinds.index(f.kind))
    lines += ["", *(f"{f.kind}: {f.stage}: {f.artefact}: {f.words}" for f in order)]
    n = Counter(f.kind for f in findings)
    good = not n[WRONG] and not (same_machine and n[INSIDE]) and bool(findings)
    if not good:
        verdict = f"Not verified: {n[WRONG] + n[INSIDE]} of {len(findings)} artefacts differ"
        verdict += ", on a machine that gives the committed bytes." if same_machine else "."
    elif n[SAME] == len(findings):
        verdict = f"Verified: all {len(findings)} artefacts are the same bytes."
    elif not n[INSIDE]:
        verdict = (
            f"Verified: {n[SAME]} of {len(findings)} artefacts are the same bytes, all numbers the same but for"
        )
        verdict += f" last digits ({n[DIGITS]}); {n[TOLD]} figures, pages, weights and arrays have other bytes."
    else:
        verdict = (
            f"Verified on another processor: in {n[INSIDE]} of {len(findings)} artefacts numbers differ, and each"
        )
        verdict += " that has an interval lies inside it."
    return [*lines, "", verdict], good


# --- the clones ---------------------------------------------------------------------------------------------


def call(folder: Path, *command: str, check: bool = True) -> int:
    return subprocess.run(command, cwd=folder, env=environment_in(folder), check=check).returncode


def _head(folder: Path) -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def prepare(folder: Path, top: Path, study: str) -> tuple[Path, Path]:
    """The clones `committed` and `rebuilt` of HEAD in `folder`; those of the same commit stay as they are.

    Of `rebuilt` the lock and all outputs of the study's stages are deleted once, so that nothing is up to date."""
    clones, ready = (folder / "committed", folder / "rebuilt"), folder / f"{study}.begun"
    if not (clones[1] / ".git").exists() or _head(clones[1]) != _head(top):
        shutil.rmtree(folder, ignore_errors=True)
        for clone in clones:
            call(top, "git", "clone", "--quiet", str(top), str(clone))
    times = [place / ".dvc/tmp/her2-progress.json" for place in (top, clones[1])]  # for what is left
    if not ready.is_file():
        if times[0].is_file():
            times[1].parent.mkdir(exist_ok=True)
            shutil.copy(*times)
        for path in [out["path"] for stage in _lock(clones[0], study).values() for out in stage["outs"]]:
            for old in _files(clones[1], path).values():
                old.unlink()
        (folder_of(clones[1], study) / "dvc.lock").unlink(missing_ok=True)
        ready.write_text(_head(top))
    return clones


def main(study: str) -> int:
    """Rebuild, compare and print; the exit status."""
    if not _lock(TOP, study):
        raise SystemExit(f"nothing to verify: there is no dvc.lock of the study {study}")
    committed, rebuilt = prepare(FOLDER, TOP, study)
    same_machine = not call(rebuilt, "python", "benchmarks/machine.py", "--check", check=False)
    pipeline = (folder_of(rebuilt, study) / "dvc.yaml").relative_to(rebuilt)
    call(rebuilt, "dvc", "repro", "--no-run-cache", str(pipeline))
    lines, good = report(compare(committed, rebuilt, study), same_machine)
    print(f"\n{study}, commit {_head(rebuilt)[:12]}; both clones lie in {FOLDER}, which may be deleted\n")
    print(*lines, sep="\n")
    return int(not good)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:] or ["embedded"]))
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"{' '.join(error.cmd)} failed; what it says stands above. Again, and it goes on"
        ) from error
