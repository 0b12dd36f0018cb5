"""Stands in for `python` in a rehearsal: runs a stage's command, notes what it took, and may kill it half-way.

    python shim.py LOG KILLS ARGUMENTS...

LOG: one line of JSON per command.  KILLS: JSON, {command: seconds after which it is killed, once}; may be absent.
Memory is that of the largest process.
"""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(log: Path, kills: Path, arguments: list[str]) -> int:
    """Run Python with the arguments; returns its exit status, as a shell has it."""
    command = " ".join(arguments)
    after = json.loads(kills.read_text()).get(command) if kills.is_file() else None
    if log.is_file() and any(json.loads(line)["command"] == command for line in log.read_text().splitlines()):
        after = None
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, *arguments])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = child.wait(after)
    except subprocess.TimeoutExpired:
        child.kill()
        status = child.wait()
    status = status if status >= 0 else 128 - status  # as a shell has it
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {"command": command, "status": status, "wall_s": time.monotonic() - start}
    line |= {"cpu_s": used.ru_utime + used.ru_stime, "peak_GB": used.ru_maxrss * 1024 / 1e9}
    with open(log, "a") as file:
        file.write(json.dumps(line) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
