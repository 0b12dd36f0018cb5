"""How a benchmark measures and writes: arms in turns, medians with their spread, and the machine beside them.

A round calls every arm once, forwards and backwards by turns: whatever else the machine does meets them all.
Seconds are the processor's, of all threads; waiting for a processor that others have does not count.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def in_turns(
    arms: dict[str, Callable], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each call of each arm, {arm: `(rounds,)`}, after a first call that is not counted."""
    for call in arms.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            start = clock()
            arms[name]()
            times[name].append(clock() - start)
    return times


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Median, lowest and highest of some numbers, and how many they are."""
    found = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(float(value), digits) for name, value in found.items()} | {"n": len(values)}


def times_of(times: dict[str, list[float]], arm: str, to: str) -> dict[str, float]:
    """How many times as long an arm took as another, round by round."""
    return spread([a / b for a, b in zip(times[arm], times[to], strict=True)], 3)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine(*packages: str) -> dict[str, Any]:
    """Where and with what it is measured; load: processes that wanted a processor in the minute before."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    about = {"date": date.today().isoformat(), "processor": _processor(), "cores": os.cpu_count()}
    about |= {"load_before": load, "system": platform.system(), "python": platform.python_version()}
    return about | {"packages": {name: version(name) for name in packages}}


def write(script: str, result: dict[str, Any]) -> None:
    """Write what a script found beside it, as <script>.json."""
    Path(script).with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
