"""The whole rehearsal:  make rehearse   or   make rehearse KILL=1"""

import argparse
import json
import shutil
import time
from pathlib import Path

import pandas as pd
from house import TOP

from rehearsal import mamamia, stages
from rehearsal.archive import TAR, check_reasons, make_archive
from rehearsal.compendium import make_compendium, noted, run
from rehearsal.patients import FULL, REAL_SIZE
from rehearsal.servers import Moto, Zenodo

_WANTED = {"cpu_s": 6.0, "peak_GB": 1.5}  # at most, of a patient of real size
_MINUTES = 10  # at most, undisturbed, on two cores


def undisturbed(top: Path, people: list, zenodo: Zenodo) -> None:
    """From acquire to report.html; prints what it took and who is in it."""
    stages.repro(top)
    if not any(start for name, start in zenodo.asked if name == TAR):
        raise RuntimeError(f"{TAR} was cut off and not resumed: {zenodo.asked}")
    check_reasons(people, stages.reasons(top))
    print(f"\nPatients\n{stages.patient_table(top).to_string(index=False)}")
    table = stages.stage_table(noted(top))
    print(f"\nStages (memory: the largest process)\n{table.to_string(index=False, float_format='%.1f')}")
    minutes = table["wall_s"].iloc[-1] / 60
    print(f"{minutes:.1f} minutes, {'within' if minutes <= _MINUTES else 'MORE THAN'} the {_MINUTES} wanted")


def alone(top: Path, archive: Path) -> None:
    """Each patient of real size that IDC serves, by itself; prints processor time and memory."""
    rows = []
    for patient in REAL_SIZE:
        if not patient.startswith("ISPY1_"):  # of the release, which comes as a whole
            out = run(top, "python", "-m", "rehearsal.alone", patient, str(archive / "alone" / patient), tests=True)
            rows.append(json.loads(out.strip().splitlines()[-1]))
    table = pd.DataFrame(rows)
    print(f"\nAlone (wanted: at most {_WANTED})\n{table.to_string(index=False, float_format='%.2f')}")


def disturbed(top: Path, undisturbed: Path, people: list, servers: list) -> None:
    """Every stage killed once, the archives away for a while: the same bytes in the end, or RuntimeError."""
    stages.plan_kills(top, noted(undisturbed))
    thread = stages.disturb(top, servers, len(people) // 2)
    stages.repro(top, disturbed=True)
    thread.join(timeout=0)
    if thread.is_alive():
        raise RuntimeError("the archives were never away: acquire ended too early")
    expected, found = stages.snapshot(undisturbed), stages.snapshot(top)
    differ = sorted(p for p in expected.keys() | found.keys() if expected.get(p) != found.get(p))
    table = stages.stage_table(noted(top))
    print(f"\nKilled once each\n{table[['stage', 'killed']].to_string(index=False)}")
    print(f"{len(expected)} files of the undisturbed run, {len(differ)} of them others after kills and an absence")
    if differ:
        raise RuntimeError("other bytes:\n" + "\n".join(differ))


def main() -> None:
    parser = argparse.ArgumentParser(prog="rehearsal", description=__doc__)
    parser.add_argument("--kill", action="store_true", help="then all of it again, killed and cut off")
    parser.add_argument("--folder", type=Path, default=TOP / ".rehearsal", help="where it works; some 8 GB")
    arguments = parser.parse_args()
    folder, start = arguments.folder.absolute(), time.monotonic()
    archive = folder / "archive"
    people = make_archive(FULL, archive)
    print(f"stand-in archive of {len(people)} patients: {time.monotonic() - start:.0f} s, {archive}")
    idc, zenodo = Moto(archive / "served"), Zenodo(archive / "served", ranges=True, cut=(TAR,))
    tops = [folder / name for name in ("undisturbed", "disturbed")]
    for top in tops:
        shutil.rmtree(top, ignore_errors=True)
    make_compendium(tops[0], archive, idc.url, zenodo.url)
    undisturbed(tops[0], people, zenodo)
    alone(tops[0], archive)
    print(f"\nMAMA-MIA's layout, from table to report.html\n{mamamia.rehearse(tops[0])}")
    if arguments.kill:
        zenodo.set(ranges=False, cut=[TAR])
        make_compendium(tops[1], archive, idc.url, zenodo.url)
        disturbed(tops[1], tops[0], people, [idc, zenodo])


if __name__ == "__main__":
    main()
