"""The same bytes on every x86-64 processor: what is pinned, who inherits it, and what this machine computes."""

import ast
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import machine
import pytest

import her2core
from her2core.parallel import each

TOP = Path(__file__).resolve().parents[1]
pinned = pytest.mark.skipif(her2core.INSTRUCTIONS != "AVX2", reason=f"instructions are {her2core.INSTRUCTIONS}")
SHOW = """
import json, os, threadpoolctl, torch
import numpy._core._multiarray_umath as umath
blas = {pool["architecture"] for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"}
wide = [name for name in ("X86_V4", "AVX512_ICL", "AVX512_SPR") if umath.__cpu_features__[name]]
print(json.dumps([her2core.INSTRUCTIONS, sorted(blas), wide, torch.backends.cpu.get_cpu_capability()]))
"""
AVX2 = ["AVX2", ["Haswell"], [], "AVX2"]


def bare(**more):
    """The environment as a user has it who knows nothing of pins, with `more`."""
    return {k: v for k, v in os.environ.items() if k not in her2core.PINS and k != "HER2_PINS"} | more


def python(code, *options, **env):
    """What a new interpreter prints."""
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=TOP, env=bare(**env), capture_output=True, text=True
    )


@pinned
@pytest.mark.skipif(
    sys.platform != "linux" or not platform.python_version().startswith(f"{machine.PYTHON}."),
    reason=f"the committed results are those of Linux and the packages for Python {machine.PYTHON}",
)
def test_this_machine_gives_the_committed_bytes():
    found = machine.piece_digests()
    assert found == machine.EXPECTED, "see python benchmarks/machine.py"


def test_the_package_imports_neither_numpy_nor_torch_and_sets_the_pins():
    code = "import her2core, os, sys; print({'numpy', 'torch'} & {*sys.modules}, dict(os.environ))"
    loaded, env = python(code).stdout.split(maxsplit=1)
    assert loaded == "set()" and her2core.PINS.items() <= ast.literal_eval(env).items()


@pinned
def test_the_libraries_obey_whatever_stood_in_the_environment():
    found = python("import her2core" + SHOW, "-W", "error", OPENBLAS_CORETYPE="SkylakeX", OMP_NUM_THREADS="7")
    assert json.loads(found.stdout) == AVX2, found.stderr


@pinned
def test_numpy_before_the_package_is_a_warning_that_says_what_to_do():
    found = python("import numpy, torch\nimport her2core; print(her2core.INSTRUCTIONS)")
    assert re.search(r"<string>:2: RuntimeWarning: numpy and torch .*import her2core first.*make lab", found.stderr)
    assert found.stdout == "the processor's own, because numpy and torch came before her2core\n"


@pinned
def test_a_plugin_of_pytest_that_brings_numpy_comes_too_late_to_matter(tmp_path):
    (tmp_path / "early.py").write_text("import numpy\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = "import pytest; pytest.main(['--collect-only', 'tests/test_auc.py'])"
    found = python(code, PYTEST_PLUGINS="early", PYTHONPATH=paths)
    assert "tests collected" in found.stdout and "RuntimeWarning" not in found.stdout, found


def test_numpy_first_is_nothing_where_the_pins_are_inherited():
    found = python("import numpy, her2core; print(her2core.INSTRUCTIONS)", "-W", "error", **her2core.PINS)
    assert (found.stdout.strip(), found.stderr) == (her2core.INSTRUCTIONS, "")


def test_the_pins_can_be_left_off_and_this_is_said():
    code = "import os; old = {**os.environ}; import her2core; print({**os.environ} == old, her2core.INSTRUCTIONS)"
    assert python(code, HER2_PINS="off").stdout == "True the processor's own, because of HER2_PINS=off\n"


@pytest.mark.parametrize("flags", ["fpu sse4_2 avx", "fpu avx avx2"])
def test_a_processor_without_these_instructions_is_left_alone(flags, monkeypatch, tmp_path):
    monkeypatch.setattr(her2core.platform, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert not her2core._has_avx2(tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags} avx2 fma\n")
    assert her2core._has_avx2(tmp_path / "cpuinfo") and her2core._has_avx2(tmp_path / "no such file")
    monkeypatch.setattr(her2core.platform, "machine", lambda: "aarch64")
    assert not her2core._has_avx2(tmp_path / "no such file")


def instructions(_):
    return her2core.INSTRUCTIONS, os.environ["OMP_NUM_THREADS"]


def test_worker_processes_inherit_the_pins(monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER", raising=False)
    assert each(instructions, range(2), 2, "test") == [(her2core.INSTRUCTIONS, "1")] * 2


@pinned
@pytest.mark.parametrize("env", [{}, her2core.PINS], ids=["by hand", "by make lab"])
def test_a_notebooks_kernel_has_the_pins(env):
    from jupyter_client.manager import start_new_kernel

    first = "import numpy" if env else "from her2core.config import Study"  # by hand, as our notebooks begin
    printed = []
    manager, client = start_new_kernel(kernel_name="python3", env=bare(**env), cwd=str(TOP))
    try:
        client.execute_interactive(f"{first}\nimport her2core{SHOW}", output_hook=printed.append, timeout=120)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    said = [m["content"] for m in printed if m["msg_type"] in ("stream", "error")]
    assert len(said) == 1 and json.loads(said[0]["text"]) == AVX2, said


def imported(code):
    """Roots of the packages that a cell imports, in order."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("notebook", sorted((TOP / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_import_this_package_first(notebook):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    names = [
        name for cell in cells for name in imported("".join(cell["source"])) if name not in sys.stdlib_module_names
    ]
    assert names[0] == "her2core"


def test_make_tells_first_whether_this_machine_gives_the_bytes_and_starts_jupyter_with_the_pins():
    recipes = dict(re.findall(r"^(\w+):.*\n((?:\t.*\n)+)", (TOP / "Makefile").read_text(), flags=re.M))
    assert recipes["repro"].splitlines()[0] == "\tpython benchmarks/machine.py"
    assert "import her2core" in recipes["lab"] and '"jupyter"' in recipes["lab"]


@pytest.fixture
def pieces(monkeypatch):
    monkeypatch.setattr(machine, "_PIECES", {lambda: {"one": "1" * 64, "two": "2" * 64}: "all"})
    monkeypatch.setattr(machine, "EXPECTED", {"one": "1" * 64, "two": "2" * 64})


@pytest.mark.parametrize(
    ("python", "two", "words", "status"),
    [
        (machine.PYTHON, "2", "This machine gives the committed bytes", 0),
        ("3.99", "2", "All pieces are the same. But this is Python 3.99", 0),
        (machine.PYTHON, "x", "does not give the committed bytes: 1 of 2 pieces differ. Results", 1),
        ("3.99", "x", "1 of 2 pieces differ. This is Python 3.99, with other packages", 1),
    ],
)
def test_the_verdict_is_one_paragraph_and_check_makes_it_an_exit_status(
    pieces, monkeypatch, capsys, python, two, words, status
):
    monkeypatch.setattr(machine.platform, "python_version_tuple", lambda: (*python.split("."), "1"))
    monkeypatch.setitem(machine.EXPECTED, "two", two * 64)
    assert machine.main([]) == 0 and machine.main(["--check"]) == status
    shown = " ".join(capsys.readouterr().out.split())
    assert words in shown and her2core.INSTRUCTIONS in shown
    assert ("222222222222 DIFFERS" in shown) == bool(status) and "111111111111 same" in shown


def test_the_pins_can_be_exported_to_what_is_not_started_from_here(capsys):
    assert machine.main(["--pins"]) == 0
    assert dict(pair.split("=") for pair in capsys.readouterr().out.split()) == her2core.PINS
