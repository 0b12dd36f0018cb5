"""All stages of the rehearsal by DVC, undisturbed or killed and cut off; what they took, and what they wrote."""

import hashlib
import json
import re
import subprocess
import threading
import time
from pathlib import Path

import pandas as pd

from rehearsal.compendium import NAME, environment, noted, put_shim

PIPELINE = f"studies/{NAME}/dvc.yaml"
_KILLED = 137
_SCRATCH = re.compile(r"\.part\.ipynb$|/downloads/|/\.[^/]*$")
_AWAY_S = 8  # how long the archives are away


def repro(top: Path, *, until: str = "", disturbed: bool = False) -> None:
    """`dvc repro` of all stages, or of those `until` one of them, again and again until it ends well.

    RuntimeError for a failure that is not of our making: where the run is not disturbed, for any; else for one that
    is neither a kill nor the archives' absence.
    """
    put_shim(top)
    log, allowed = top / "repro.log", 2 if disturbed else 0  # failures of acquire while the archives are away
    while True:
        with open(log, "ab") as out:
            command = ["dvc", "repro", PIPELINE + (f":{until}" if until else "")]
            done = subprocess.run(command, cwd=top, env=environment(top), stdout=out, stderr=out)
        if done.returncode == 0:
            return
        last = noted(top)[-1] if noted(top) else {"command": "dvc", "status": None}
        if disturbed and last["status"] == _KILLED:
            continue
        allowed -= "cohorts.acquire" in last["command"]
        if not disturbed or allowed < 0 or "cohorts.acquire" not in last["command"]:
            tail = re.sub(r"[^\n]*\r", "", log.read_text(errors="replace"))[-4000:]
            raise RuntimeError(f"{last['command']} ended with {last['status']}; {log}:\n{tail}")


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
