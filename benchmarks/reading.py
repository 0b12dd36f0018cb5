"""Time and memory to read a dynamic series from DICOM: her2core beside SimpleITK, pydicom and dicom2nifti.

    pip install -e .[bench]
    python benchmarks/reading.py        # a minute; writes benchmarks/reading.json

The series: 8 phases of 80 × 256 × 256 voxels, 640 files, uint16, on a local disk and in the cache of the system.
her2core gets the folder and finds slices and phases itself; SimpleITK and dicom2nifti get the sorted file names
of each phase, which is not timed; pydicom reads file by file, sorts and stacks.  The arrays are compared before
anything is timed; then the readers take turns; medians of processor seconds count.  Memory is the peak of a process
of its own above its imports (Linux).
"""

from her2core import PINS  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import dicom2nifti
import numpy as np
import pydicom
import SimpleITK as sitk

from her2core.formats.dicom import read_dce
from her2core.formats.dicom_write import Acquisition, write_dce
from her2core.formats.volume import DceSeries, Geometry
from timing import in_turns, machine, spread, times_of, write

SHAPE = (8, 80, 256, 256)  # (T, Z, Y, X)
ROUNDS = 11


def make(folder):
    array = np.random.default_rng(0).integers(0, 4096, SHAPE, np.uint16)
    series = DceSeries(array, Geometry((2.0, 0.7, 0.7)), tuple(90.0 * t for t in range(SHAPE[0])))
    scanner = Acquisition("DCE", "GE MEDICAL SYSTEMS", 1.5, tr_ms=5.3, te_ms=2.4, flip_deg=10)
    write_dce(series, folder, patient_id="P1", acquisition=scanner)


def place(dataset):
    return int(dataset.TemporalPositionIdentifier), float(dataset.ImagePositionPatient[2])


def names_of_phases(folder):
    """File names `(T, Z)`, sorted; not timed."""
    paths = sorted(folder.iterdir(), key=lambda path: place(pydicom.dcmread(path, stop_before_pixels=True)))
    return np.reshape([str(path) for path in paths], SHAPE[:2])


def her2core(folder, names):
    return read_dce(folder).array


def simpleitk(folder, names):
    reader, phases = sitk.ImageSeriesReader(), np.empty(SHAPE, np.uint16)
    for phase, files in zip(phases, names.tolist(), strict=True):
        reader.SetFileNames(files)
        image = reader.Execute()  # the view does not keep it alive
        phase[:] = sitk.GetArrayViewFromImage(image)
    return phases


def pydicom_(folder, names):
    datasets = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=place)
    return np.stack([dataset.pixel_array for dataset in datasets]).reshape(SHAPE)


def dicom2nifti_(folder, names):
    image = dicom2nifti.dicom_series_to_nifti(folder, None, reorient_nifti=False)["NII"]
    return np.asanyarray(image.dataobj).T


READERS = {"her2core": her2core, "SimpleITK": simpleitk, "pydicom": pydicom_, "dicom2nifti": dicom2nifti_}


def peak_bytes():
    """Peak resident memory of this process so far; getrusage would count that of its parent too."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def grown(name, folder):
    """Peak memory of this process above what it was before reading, as a multiple of the array."""
    names = names_of_phases(folder)
    before = peak_bytes()
    array = READERS[name](folder, names)
    return (peak_bytes() - before) / array.nbytes


def grown_in_a_new_process(name, folder):
    command = [sys.executable, __file__, name, str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main():
    if len(sys.argv) == 3:
        print(grown(sys.argv[1], Path(sys.argv[2])))
        return
    about = machine("numpy", "pydicom", "SimpleITK", "dicom2nifti")
    with TemporaryDirectory() as home:
        folder = Path(home) / "dce"
        make(folder)
        names = names_of_phases(folder)
        reference = her2core(folder, names)
        for name, read in READERS.items():
            if not np.array_equal(read(folder, names), reference):
                raise ValueError(f"{name} reads other voxels than her2core")
        times = in_turns({name: partial(read, folder, names) for name, read in READERS.items()}, ROUNDS)
        arms = {}
        for name, seconds in times.items():
            beside = {other: times_of(times, name, other) for other in READERS if other != name}
            arms[name] = {"seconds": spread(seconds), "times": beside}
            arms[name]["memory"] = round(grown_in_a_new_process(name, folder), 3)
    print(f"one series, {SHAPE}, uint16, {SHAPE[0] * SHAPE[1]} files; median of {ROUNDS}")
    for name, arm in arms.items():
        relative = arm["times"].get("SimpleITK", {"median": 1})["median"]
        print(f"{name:12s} {arm['seconds']['median']:6.2f} s {relative:6.2f} × SimpleITK", end="")
        print(f", peak {arm['memory']:.2f} × the array")
    write(__file__, {"machine": about, "files": SHAPE[0] * SHAPE[1], "shape": SHAPE, "arms": arms})


if __name__ == "__main__":
    main()
