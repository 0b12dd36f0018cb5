"""Execute one notebook, strictly:  python -m her2core.run 02_training cohort=embedded run=thda-channel_q98-raw

Reads notebooks/NAME.ipynb, writes results/<cohort>/executed/NAME[-value…].ipynb, and shows what the notebook
prints as it runs, progress bars included.  What plain papermill lets pass is an error here: an unknown
parameter, a dependency edited in mid-run.  The written notebook is the same from run to run, byte for byte, and
replaces that of the last run only when it is complete.
"""

import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from her2core.config import Study, root, steady_dependencies
from her2core.progress import progress

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's optional checker: a second of import, unused here

_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
_WIDGET = "application/vnd.jupyter.widget-view+json"


def scrub(notebook: Any) -> Any:
    """Drop what depends on when, where or how fast the notebook ran."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"c{number:02d}"
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            results = [o for o in cell.outputs if o.get("name") != "stderr"]
            cell.outputs = [o for o in results if _WIDGET not in o.get("data", {})]
            for output in cell.outputs:
                _scrub_addresses(output)
    return notebook


def _scrub_addresses(output):
    text = output if "text" in output else output.get("data", {})
    for key in {"text", "text/plain", "text/html"} & text.keys():
        text[key] = _ADDRESS.sub("0x0", text[key])


def _execute(source, part, parameters):
    """Run `source` into `part`; its folder is the working directory, as in JupyterLab."""
    import papermill
    from papermill.clientwrap import PapermillNotebookClient

    # what an Output widget would be told can make nbclient wait for ever (its issue 312), and no widget is kept
    PapermillNotebookClient.on_comm_open_jupyter_widget = lambda client, message: None
    known = papermill.inspect_notebook(str(source))  # of an unknown parameter papermill would only warn
    if unknown := ", ".join(sorted(parameters.keys() - known.keys())):
        raise ValueError(f"notebooks/{source.name} has no parameter {unknown}; it has {', '.join(known) or 'none'}")
    part.parent.mkdir(parents=True, exist_ok=True)
    for name in ("papermill", "asyncio", "tornado"):  # they warn of what a stop leaves undone
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.update(PYTHONPATH=str(root()), PYTHONHASHSEED="0", PYTHONUTF8="1", SOURCE_DATE_EPOCH="0")
    if not sys.stderr.isatty():  # each update of a bar is a line of a log; tqdm reads this
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    return papermill.execute_notebook(
        str(source),
        str(part),
        parameters,
        cwd=str(source.parent),
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,  # progress bars live, carriage returns and all
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=50"],  # hush the kernel's own log
    )


def run(name: str, parameters: dict[str, str]) -> Path:
    """Execute notebooks/`name`.ipynb; returns the path written.  Raises ValueError on anything unexpected.

    parameters: of the notebook; `cohort`, the study, is the top level's where it is not given.
    """
    import nbformat
    from papermill.exceptions import PapermillExecutionError

    study = Study.open(parameters.get("cohort"))
    parameters = {"cohort": study.name} | parameters
    source = study.top / "notebooks" / f"{name}.ipynb"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in source.parent.glob("*.ipynb")))
        raise ValueError(f"no notebook {name!r}; there are {known}")
    item = {k: v for k, v in parameters.items() if k != "cohort"}
    values = [Path(value).name for value in item.values()]  # of a path, its last part
    out = study.results / "executed" / ("-".join([name, *values]) + ".ipynb")
    part = out.with_suffix(".part.ipynb")
    try:
        with progress(study), steady_dependencies(f"notebooks/{name}.ipynb", study, **item):
            notebook = _execute(source, part, parameters)
    except PapermillExecutionError as error:
        raise ValueError(
            f"notebooks/{name}.ipynb, cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
            f"The notebook as far as it got, with the traceback: {part.relative_to(study.top)}"
        ) from error
    except RuntimeError as error:  # a kernel that died, or did not even start
        cells = [c for c in nbformat.read(part, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
        cell = f"notebooks/{name}.ipynb, cell [{sum(bool(c.metadata.papermill.start_time) for c in cells)}]"
        remedy = "what was complete is kept: run it again, with fewer jobs or more memory"
        raise ValueError(f"{cell}: {error}; probably it was killed for lack of memory; {remedy}") from error
    nbformat.write(scrub(notebook), part)
    part.replace(out)
    return out


def parse(arguments: list[str]) -> dict[str, str]:
    """["run=x"] → {"run": "x"}; a value, or its last part, becomes part of a file name."""
    pairs = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"[\w./-]*[\w-]", value):
            raise ValueError(f"found {argument!r}, expected name=value, the value of letters, digits and _ - . /")
        pairs[key] = value
    return pairs


def main(arguments: list[str]) -> None:
    """The command line."""
    if not arguments or arguments[0].startswith("-"):
        sys.exit(__doc__)
    for number in (signal.SIGINT, signal.SIGTERM):  # a job in the background inherits SIGINT as ignored
        signal.signal(number, signal.default_int_handler)  # either way the kernel is shut down first
    start = time.monotonic()
    try:
        out = run(arguments[0], parse(arguments[1:]))
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error}")
    print(f"{out.relative_to(root())}  {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
