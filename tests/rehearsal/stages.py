"""All stages of the rehearsal by DVC, undisturbed or killed and cut off; what they took, and what they wrote."""

import hashlib
import json
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from her2core.config import read_yaml
from rehearsal.compendium import NAME, environment, noted, put_shim, run

PIPELINE = f"studies/{NAME}/dvc.yaml"
_KILLED = 137
_SCRATCH = re.compile(r"\.part\.ipynb$|/downloads/|/\.[^/]*$")
_AWAY_S = 8  # how long the archives are away


def repro(top: Path, disturbed: bool = False) -> None:
    """`dvc repro`, again and again until it ends well.

    RuntimeError for a failure that is not of our making: where the run is not disturbed, for any; else for one that
    is neither a kill nor the archives' absence.
    """
    put_shim(top)
    log, allowed = top / "repro.log", 2 if disturbed else 0  # failures of acquire while the archives are away
    while True:
        before = len(noted(top))
        with open(log, "ab") as out:
            command = ["dvc", "repro", PIPELINE]
            done = subprocess.run(command, cwd=top, env=environment(top), stdout=out, stderr=out)
        if done.returncode == 0:
            return
        last = noted(top)[-1] if len(noted(top)) > before else {"command": "dvc", "status": done.returncode}
        if disturbed and last["status"] == _KILLED:
            continue
        allowed -= "cohorts.acquire" in last["command"]
        if not disturbed or allowed < 0 or "cohorts.acquire" not in last["command"]:
            tail = re.sub(r"[^\n]*\r", "", log.read_text(errors="replace"))[-4000:]
            raise RuntimeError(f"{last['command']} ended with {last['status']}; {log}:\n{tail}")


def without_dvc(top: Path, left_out: tuple[str, ...] = ()) -> None:
    """All stages by their commands, two at a time, each after those whose results it needs.  RuntimeError if one
    fails.  left_out: stages that nothing else needs."""
    put_shim(top)
    stages, params = (read_yaml(top / "studies" / NAME / f"{file}.yaml") for file in ("dvc", "params"))
    wanted = [stage for name, stage in stages["stages"].items() if name not in left_out]
    todo = [job for stage in wanted for job in _jobs(stage, params["runs"])]
    with ThreadPoolExecutor(2) as pool:
        while todo:
            ready = [job for job in todo if not any(_needs(job, other) for other in todo)]
            list(pool.map(lambda job: run(top, *job["cmd"].split()), ready))
            todo = [job for job in todo if job not in ready]


def _jobs(stage, runs):
    """A stage as its commands, one for each run where it has a matrix: cmd, deps, outs."""
    entries = [*stage["outs"], *stage.get("metrics", [])]
    plain = {"cmd": stage["cmd"], "deps": stage["deps"], "outs": [next(iter(entry)) for entry in entries]}
    for name in runs if "matrix" in stage else [""]:
        text = json.dumps(plain).replace("${name}", NAME).replace("${item.run}", name)
        yield json.loads(text)


def _needs(job, other):
    """Whether a command reads what another writes: the same path, one within it or around it."""
    pairs = [(f"{dep}/", f"{out}/") for dep in job["deps"] for out in other["outs"]]
    return job != other and any(a.startswith(b) or b.startswith(a) for a, b in pairs)


def plan_kills(top: Path, undisturbed: list[dict]) -> None:
    """Every command is to be killed once, half-way through the time it took undisturbed."""
    plan = {line["command"]: line["wall_s"] / 2 for line in undisturbed if "her2core" in line["command"]}
    (top / "kills.json").write_text(json.dumps(plan))


def disturb(top: Path, servers: list, count: int) -> threading.Thread:
    """Stop the servers once `count` patients are complete, and start them again; returns the thread that waits."""

    def away():
        records = top / "data" / NAME / "acquire" / "records"
        while len(list(records.glob("*.json"))) < count:
            time.sleep(0.05)
        for server in servers:
            server.stop()
        time.sleep(_AWAY_S)
        for server in servers:
            server.start()

    thread = threading.Thread(target=away, daemon=True)
    thread.start()
    return thread


def snapshot(top: Path) -> dict[str, str]:
    """{path: MD5} of all that the study wrote: images, tables, prepared arrays, weights, predictions, figures."""
    data = [f"data/{NAME}/{stage}" for stage in ("acquire", "cohort", "prepare")]
    found = {}
    for folder in (*data, f"models/{NAME}", f"results/{NAME}", f"figures/{NAME}"):
        for path in (top / folder).rglob("*"):
            if path.is_file() and not _SCRATCH.search(path.relative_to(top).as_posix()):
                found[path.relative_to(top).as_posix()] = hashlib.md5(path.read_bytes()).hexdigest()
    return found


def stage_of(command: str) -> str:
    """A short name of a stage's command: its notebook or module, and the run."""
    found = re.search(r"her2core\.(?:run (\S+)|(?:\w+\.)*(\w+)).*?(?:run=(\S+))?$", command)
    return "@".join(part for part in (found[1] or found[2], found[3]) if part)


def stage_table(lines: list[dict]) -> pd.DataFrame:
    """What each command took when it ended well, how often it was killed, and their sum."""
    table = pd.DataFrame(lines)
    table["stage"] = table["command"].map(stage_of)
    killed = table.groupby("stage", sort=False)["status"].agg(lambda s: int((s == _KILLED).sum()))
    last = table[table["status"] == 0].drop_duplicates("stage", keep="last").set_index("stage")
    last = last[["wall_s", "cpu_s", "peak_GB"]].assign(killed=killed)
    last.loc["in all"] = [last["wall_s"].sum(), last["cpu_s"].sum(), last["peak_GB"].max(), last["killed"].sum()]
    return last.astype({"killed": int}).reset_index()


def _kind(reason):
    return "" if pd.isna(reason) else str(reason).partition(":")[0]


def reasons(top: Path) -> dict[str, str]:
    """{patient: kind of reason} of everybody who is not used."""
    table = pd.read_csv(top / "data" / NAME / "cohort" / "patients.csv").set_index("patient")
    found = table.loc[table["split"].isna(), "reason"].map(_kind).to_dict()
    unprepared = pd.read_csv(top / "results" / NAME / "unprepared.csv").set_index("patient")
    return found | unprepared["reason"].map(_kind).to_dict()


def patient_table(top: Path) -> pd.DataFrame:
    """Per collection: patients wanted, obtained, used, and why not."""
    metadata = pd.read_csv(top / "data" / NAME / "acquire" / "metadata.csv")
    metadata["out"] = metadata["pid"].map(reasons(top))
    rows = []
    for dataset, part in metadata.groupby("dataset"):
        why = part["out"].value_counts().sort_index()
        row = {"collection": dataset, "wanted": len(part), "obtained": int(part["reason"].isna().sum())}
        row |= {
            "used": int(part["out"].isna().sum()),
            "reasons": "; ".join(f"{n} {kind}" for kind, n in why.items()),
        }
        rows.append(row)
    return pd.DataFrame(rows)
