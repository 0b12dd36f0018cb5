"""An environment with nothing in it but some packages and what they require, as `pip install` would make it."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement


def _required(names):
    """The distributions of these names, and of all that they require here."""
    found, todo = {}, list(names)
    while todo:
        name = todo.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # such as those that another platform needs
            continue
        wanted = [Requirement(text) for text in found[name].requires or ()]
        here = [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
        todo += [name for name in here if name not in found]
    return found


def make_bare(folder, *names):
    """Links to the packages of these names into `folder`."""
    folder.mkdir()
    for found in _required(names).values():
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))
    return folder


def run_bare(bare, code, cwd):
    """What `code` prints there, without this environment's packages, paths and pinned instructions."""
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "SYSTEMROOT", "LD_LIBRARY_PATH")}
    command = [sys.executable, "-S", "-W", "ignore", "-c", code]
    env |= {"PYTHONPATH": str(bare), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout
