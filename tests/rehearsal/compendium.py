"""A copy of the compendium with a study `rehearsal`: the real study `ispy`, but for the keys listed here.

The checkout, its git and its DVC stay as they are.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from house import TOP, copy_compendium, environment_in
from ruamel.yaml import YAML

from her2core.config import read_yaml
from rehearsal.weights import digests

NAME = "rehearsal"
# Every key in which the rehearsal differs from studies/ispy; a test holds that nothing else does.
SMALL = {
    "name": NAME,
    "runs": ["thda-channel_q98-raw", "thda-n4", "resnet34_rgb", "vit", "cvt", "thda_plain"],
    "acquire.manifests": f"studies/{NAME}/manifests",
    "acquire.collections.duke": "idc",
    "acquire.duke_clinical": "labels/duke_breast_cancer_mri_clinical.csv",
    "acquire.ambl_her2": {"0": 0, "1": 1},  # how the stand-in's sheet writes it
    "acquire.allow_missing": True,  # some patients cannot be used, on purpose
    "prepare.allow_missing": True,
    "prepare.crop_px": 48,
    "prepare.slices": 3,
    "models.weights.folder": "weights",
    "train.seeds": [0, 1],
    "train.epochs": 1,
    "train.device": "cpu",
    "train.threads": 1,
    "evaluate.bootstrap": 200,
}
_ADDRESSES = ("acquire.idc", "acquire.zenodo")
_DIGESTS = ("models.weights.resnet34", "models.weights.vit_b_16", "models.weights.cvt_13")
DIFFERENT = {*SMALL, *_ADDRESSES, *_DIGESTS}
# The reduced rehearsal of the test suite: networks of seconds, so no pretrained ones.
TINY = {
    "runs": ["thda-channel_q98-raw", "thda-n4"],
    "models.thda": {"width": 8, "pretrained": False},
    "models.weights.folder": "",
    "prepare.n4": {"iterations": [5]},
    "prepare.jobs": 1,  # the start of a process takes longer than its patients
    "acquire.jobs": 1,
}


def overridden(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with some keys, written `section.key`, replaced; mappings are merged."""
    values = deepcopy(dict(values))
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = {**place.get(key, {}), **value} if isinstance(value, dict) else value
    return values


def changes_for(archive: Path, idc: str, zenodo: str, tiny: bool) -> dict[str, Any]:
    """All keys that the rehearsal against this archive changes, with their values."""
    found = dict(zip(_ADDRESSES, (idc, zenodo), strict=True))
    found |= {f"models.weights.{name}": digest for name, digest in digests(archive / "weights").items()}
    return SMALL | found | (TINY if tiny else {})


def make_compendium(folder: Path, archive: Path, idc: str, zenodo: str, tiny: bool = False) -> Path:
    """A copy in `folder` with studies/rehearsal, which points at the stand-ins; returns `folder`.

    A clone in all respects, for DVC too; tiny: without git and DVC.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy_compendium(folder)
    home = folder / "studies" / NAME
    shutil.copytree(archive / "manifests", home / "manifests")
    shutil.copytree(archive / "labels", folder / "labels")
    if (archive / "weights").is_dir():
        (folder / "weights").symlink_to(archive / "weights")
    values = overridden(read_yaml(TOP / "studies/ispy/params.yaml"), changes_for(archive, idc, zenodo, tiny))
    with open(home / "params.yaml", "w") as out:
        YAML().dump(values, out)
    run(folder, "python", "-m", "her2core.study", "study", NAME)
    for command in () if tiny else ("git init -q", "dvc init -q", "git add -A", "git commit -qm rehearsal"):
        run(folder, *command.split())
    return folder


def environment(folder: Path) -> dict[str, str]:
    """For commands in the copy: its code, and the shim in place of Python."""
    return environment_in(folder, folder / "bin")


def run(folder: Path, *command: str, tests: bool = False) -> str:
    """What a command in the copy prints; RuntimeError with its last lines where it fails.  tests: it may import
    from this folder's modules."""
    env = environment(folder)
    if tests:
        env["PYTHONPATH"] += f"{os.pathsep}{TOP / 'tests'}"
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    return done.stdout


def put_shim(folder: Path) -> None:
    """From now on `python` in the copy notes what each stage takes, and kills where kills.json says so."""
    (folder / "bin").mkdir(exist_ok=True)
    shim, log, kills = Path(__file__).with_name("shim.py"), folder / "stages.jsonl", folder / "kills.json"
    script = f'#!/bin/sh\nexec "{sys.executable}" -S -E "{shim}" "{log}" "{kills}" "$@"\n'
    (folder / "bin/python").write_text(script)
    (folder / "bin/python").chmod(0o755)


def noted(folder: Path) -> list[dict]:
    """What the shim noted of each command, in order."""
    path = folder / "stages.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
