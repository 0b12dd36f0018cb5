"""HER2 prediction on breast DCE-MRI.

numpy, torch and the libraries below them pick their code by the processor, and other code gives other last digits.
`PINS` holds them all to AVX2, so that x86-64 processors give the same bytes.  A library reads them once, when it
loads.  Python runs this file before any module of the package, and child processes inherit what it sets.
HER2_PINS=off in the environment leaves everything as it is.
"""

import os
import platform
import sys
import warnings

PINS: dict[str, str] = {"OMP_NUM_THREADS": "1"}  # one order of summation, on every processor
_AVX2: dict[str, str] = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",  # numpy's own loops: exp, log, power, …
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products and solvers of numpy and scipy
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # torch's convolutions
    "MKL_CBWR": "COMPATIBLE",  # torch's matrix products; under MKL_CBWR=AVX2 Intel and AMD still differ
}


def _has_avx2(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the pins can hold: without these instructions the pinned code would crash."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if not os.path.exists(cpuinfo):
        return True  # not Linux: assumed, as nearly all have had them since 2013
    with open(cpuinfo) as file:
        return {"avx2", "fma"} <= set(file.read(8192).split())  # the first core


def _pin() -> str:
    """Set the pins.  Returns the instructions that this process computes with, in words."""
    if os.environ.get("HER2_PINS") == "off":
        PINS.clear()
        return "the processor's own, because of HER2_PINS=off"
    if avx2 := _has_avx2():
        PINS.update(_AVX2)
    inherited = all(os.environ.get(name) == value for name, value in PINS.items())
    os.environ.update(PINS)
    early = " and ".join(sorted({"numpy", "torch"} & sys.modules.keys()))
    if early and avx2 and not inherited:
        warnings.warn(
            f"{early} came before her2core and computes with this processor's own instructions, so last digits may "
            "differ from the committed results: restart Python and import her2core first (notebooks opened by "
            "`make lab` may import in any order)",
            RuntimeWarning,
            stacklevel=3,
        )
        return f"the processor's own, because {early} came before her2core"
    return "AVX2" if avx2 else f"the processor's own ({platform.machine()}, without AVX2)"


INSTRUCTIONS: str = _pin()
