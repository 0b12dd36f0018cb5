"""The runner is strict, live and repeatable."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from house import BARE
from test_parallel import assert_all_end

from her2core.run import main, parse, scrub

PACKAGE = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
STUDY = ("parameters", "cohort: str = 'small'  # the study")
GOOD = [
    ("parameters", STUDY[1] + "\nspeed: str = 'slow'  # how fast\ncolour: str = 'red'  # which"),
    (None, "import sys\nfrom tqdm import tqdm\nprint(cohort, 'speed', speed, object())"),
    (None, "for _ in tqdm(range(3), desc='bar'):\n    pass"),
]
ENDS = {
    "dies": "import os, signal\nprint('here', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)",
    "exits": "import os\nos._exit(0)",
    "starves": "bytearray(10**15)",
    "starves_in_numpy": "import numpy as np\nnp.zeros(10**15)",
}
WORKING = f"""
import sys
sys.path[:0] = [{str(PACKAGE)!r}, {str(PACKAGE / "tests")!r}]
import test_parallel
from functools import partial
from pathlib import Path
from her2core.parallel import each
each(partial(test_parallel.busy, folder=Path("..")), range(4), 2, "busy")
"""


def write_notebook(folder, name, cells):
    nb = nbformat.v4.new_notebook()
    for tag, code in cells:
        cell = nbformat.v4.new_code_cell(code)
        if tag:
            cell.metadata["tags"] = [tag]
        nb.cells.append(cell)
    nb.metadata["kernelspec"] = KERNEL
    nbformat.write(nb, folder / "notebooks" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def compendium(tmp_path_factory):
    top = tmp_path_factory.mktemp("compendium")
    (top / "notebooks").mkdir()
    (top / "params.yaml").write_text(BARE.format("small"))
    (top / "dvc.yaml").write_text(
        "stages:\n  s: {cmd: python -m her2core.run edits cohort=x, deps: [notebooks/edits.ipynb, data.txt]}\n"
        "  g: {cmd: python -m her2core.run good cohort=x, deps: [notebooks/good.ipynb]}\n"
    )
    (top / "data.txt").write_text("1")
    write_notebook(top, "good", GOOD)
    write_notebook(top, "fails", [STUDY, (None, "x = 1"), (None, "raise KeyError('a lesion')")])
    write_notebook(top, "edits", [STUDY, (None, "open('../data.txt', 'w').write('2')")])
    sleeping = "import os, time\nopen('../pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    write_notebook(top, "sleeps", [STUDY, (None, sleeping)])
    for name, code in ENDS.items():
        write_notebook(top, name, [STUDY, (None, "x = 1"), (None, code)])
    write_notebook(top, "updates", [STUDY, (None, "import tqdm\nprint(tqdm.tqdm([]).mininterval)")])
    write_notebook(top, "works", [STUDY, (None, WORKING)])
    return top


def command(*arguments):
    return [sys.executable, "-m", "her2core.run", *arguments]


def run(top, *arguments):
    env = os.environ | {"PYTHONPATH": str(PACKAGE)}
    found = subprocess.run(command(*arguments), cwd=top, env=env, capture_output=True, timeout=300)
    found.stdout, found.stderr = found.stdout.decode(), found.stderr.decode()  # text mode would turn \r into \n
    return found


def test_output_and_progress_bars_reach_the_terminal_and_the_file_repeats_to_the_byte(compendium):
    first = run(compendium, "good", "speed=fast")
    out = compendium / "results/small/executed/good-fast.ipynb"
    bytes_of_first = out.read_bytes()
    assert first.returncode == 0, first.stderr
    assert "small speed fast <object object at 0x" in first.stdout
    assert "bar: 100%" in first.stderr and "\r" in first.stderr
    run(compendium, "good", "speed=fast")
    assert out.read_bytes() == bytes_of_first
    assert b"0x0" in bytes_of_first and b"bar:" not in bytes_of_first


def test_a_log_gets_few_updates_of_a_bar_unless_the_user_says_otherwise(compendium, monkeypatch):
    assert run(compendium, "updates").stdout.split() == ["60.0"]
    monkeypatch.setenv("TQDM_MININTERVAL", "5")
    assert run(compendium, "updates").stdout.split() == ["5.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("good", "sped=fast"), "notebooks/good.ipynb has no parameter sped; it has cohort, speed, colour"),
        (("god",), "no notebook 'god'; there are dies, edits, exits, fails, good, sleeps, "),
        (("good", "fast"), "found 'fast', expected name=value"),
        (("good", "cohort=large"), "no study 'large'; there are small"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line_and_a_failure(compendium, arguments, message):
    found = run(compendium, *arguments)
    assert found.returncode == 1
    assert found.stderr.strip().startswith(message) and len(found.stderr.strip().splitlines()) == 1


def test_a_failing_cell_gives_two_lines_and_leaves_the_half_run_notebook(compendium):
    found = run(compendium, "fails")
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 1 and len(lines) == 2
    assert lines[0] == "notebooks/fails.ipynb, cell [4]: KeyError: 'a lesion'"
    part = compendium / "results/small/executed/fails.part.ipynb"
    assert str(part.relative_to(compendium)) in lines[1] and part.is_file()
    assert not (compendium / "results/small/executed/fails.ipynb").exists()


@pytest.mark.parametrize("name", ["dies", "exits"])
def test_a_kernel_that_dies_is_one_line_that_says_where_why_and_what_to_do(compendium, name):
    before = compendium / f"results/small/executed/{name}.ipynb"
    before.parent.mkdir(parents=True, exist_ok=True)
    before.write_text("of the last run")
    found = run(compendium, name)
    says = "Kernel died; probably it was killed for lack of memory; what was complete is kept: run it again, with "
    assert found.returncode == 1 and before.read_text() == "of the last run"
    assert found.stderr.strip() == f"notebooks/{name}.ipynb, cell [4]: {says}fewer jobs or more memory"


@pytest.mark.parametrize(
    ("name", "kind"), [("starves", "MemoryError: "), ("starves_in_numpy", "MemoryError: Unable")]
)
def test_want_of_memory_in_a_notebook_says_so_and_where(compendium, name, kind):
    found = run(compendium, name)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert found.stderr.strip().startswith(f"notebooks/{name}.ipynb, cell [4]: {kind}")


def test_a_kernel_that_never_answers_is_one_line_too(compendium, monkeypatch, capsys):
    monkeypatch.chdir(compendium)
    monkeypatch.setattr("papermill.execute_notebook", refuse)
    with pytest.raises(SystemExit, match=r"notebooks/good.ipynb, cell \[0\]: Kernel didn't respond in 60 seconds"):
        main(["good"])


def refuse(source, part, parameters, **_):
    nbformat.write(nbformat.v4.new_notebook(), part)
    raise RuntimeError("Kernel didn't respond in 60 seconds")


def test_nothing_is_left_of_a_runner_that_is_killed_while_its_workers_are_busy(compendium):
    env = os.environ | {"PYTHONPATH": str(PACKAGE)}
    runner = subprocess.Popen(command("works"), cwd=compendium, env=env, stderr=subprocess.DEVNULL)
    assert_all_end(runner, signal.SIGKILL, compendium)


def test_a_dependency_edited_in_mid_run_fails_the_run(compendium):
    found = run(compendium, "edits")
    assert found.returncode == 1 and "changed while the stage ran" in found.stderr and "data.txt" in found.stderr
    assert not (compendium / "results/small/executed/edits.ipynb").exists()


def test_a_failing_run_leaves_the_notebook_of_the_last_one_as_it_was(compendium):
    before = compendium / "results/small/executed/edits.ipynb"
    before.parent.mkdir(parents=True, exist_ok=True)
    before.write_text("of the last run")
    (compendium / "data.txt").write_text("1")
    assert run(compendium, "edits").returncode == 1
    assert before.read_text() == "of the last run"
    before.unlink()


def ignoring_interrupts():
    """As a shell starts a job in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("start", [None, ignoring_interrupts], ids=["in front", "in the background"])
def test_an_interrupt_leaves_no_kernel_behind(compendium, signal_number, start):
    pid = compendium / "pid"
    pid.unlink(missing_ok=True)
    env = os.environ | {"PYTHONPATH": str(PACKAGE)}
    runner = subprocess.Popen(
        command("sleeps"), cwd=compendium, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=start
    )
    try:
        wait_for(lambda: pid.is_file() and pid.read_text(), 300)
        runner.send_signal(signal_number)
        _, stderr = runner.communicate(timeout=300)
    finally:
        runner.kill()
    assert runner.returncode != 0 and stderr.strip() == "stopped"
    wait_for(lambda: not alive(int(pid.read_text())), 120)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize("argument", ["run", "run=../x y", "run=", "run=a;b"])
def test_values_that_could_not_be_a_file_name_are_refused(argument):
    with pytest.raises(ValueError, match="expected name=value"):
        parse([argument])


def test_scrubbing_keeps_results_and_drops_what_changes():
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL, "papermill": {"duration": 1.2}})
    cell = nbformat.v4.new_code_cell("x", metadata={"tags": ["t"], "execution": {"shell.execute_reply": "2026"}})
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="bar"),
        nbformat.v4.new_output("stream", name="stdout", text="at 0x7f1234567890"),
    ]
    nb.cells = [cell]
    out = scrub(nb)
    assert out.metadata == {"kernelspec": KERNEL}
    assert out.cells[0].metadata == {"tags": ["t"]} and out.cells[0].id == "c00"
    assert [o.text for o in out.cells[0].outputs] == ["at 0x0"]
