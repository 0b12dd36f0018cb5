"""The study `tiny` in minutes:  make try

It runs in .try, a copy of the compendium that git ignores, with a DVC of its own: no file beside it changes,
neither a study `tiny` of the user's nor anything of git's or DVC's.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

from house import PUBLISHED_STUDIES, TOP, copy_compendium, environment_in

FOLDER = TOP / ".try"


def prepare(folder: Path) -> None:
    """A fresh copy in `folder`, with the study `tiny`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    copy_compendium(folder)
    for study in PUBLISHED_STUDIES - {"sample", "templates"}:  # DVC need not look through them
        shutil.rmtree(folder / "studies" / study)
    call(folder, "python", "-m", "her2core.study", "study", "tiny")


def call(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, env=environment_in(folder), check=True)


def summary(results: Path) -> list[str]:
    """The reference's AUC at every site, with n and interval."""
    metrics = json.loads((results / "metrics.json").read_text("utf-8"))
    form = "  {}: AUC {auc:.2f} ({low:.2f} to {high:.2f}), {patients} patients"
    sites = {"internal test": metrics["internal"]} | metrics["external"]
    return [form.format(site, **found) for site, found in sites.items()]


def main() -> None:
    start = time.monotonic()
    prepare(FOLDER)
    call(FOLDER, "dvc", "repro", "studies/tiny/dvc.yaml")
    print(f"\nThe tiny study, from raw files to its page: {(time.monotonic() - start) / 60:.1f} min.")
    print("So few phantoms show that everything runs here; their numbers mean nothing:")
    print(*summary(FOLDER / "results/tiny"), sep="\n")
    print(f"Page: {FOLDER / 'results/tiny/report.html'}\nAll of it: {FOLDER}, which may be deleted")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(error.cmd)} failed; what it says stands above") from error
