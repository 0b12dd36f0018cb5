"""`params.yaml` → frozen dataclasses, and the guard that keeps DVC's record true.

Every number of the study stands in `params.yaml`, one complete section per cohort.  The dataclasses live
beside the code they configure; an unknown key or a wrong type is an error that names it.
"""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

import dacite
from ruamel.yaml import YAML  # YAML 1.2, the parser DVC uses: PyYAML reads 1e-5 as a string

os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # matplotlib: no dates in PDF figures


def root():
    """The compendium's folder: the first one at or above the working directory with a `params.yaml`.

    Not taken from this file's place: an editable install would tie every clone to the first checkout.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no params.yaml in {here} or above it: start inside the compendium")


def read_yaml(path):
    return YAML(typ="safe").load(path)


def cohort():
    """Which cohort runs: the word at the top of `params.yaml`."""
    values = read_yaml(root() / "params.yaml")
    name = values.get("cohort")
    known = [k for k, v in values.items() if isinstance(v, dict)]
    if name not in known:
        raise ValueError(f"params.yaml: cohort is {name!r}; it has sections for {', '.join(known)}")
    return name


def setting(name):
    """A value that all cohorts share, such as `runs`."""
    values = read_yaml(root() / "params.yaml")
    if name not in values:
        raise ValueError(f"params.yaml has no {name!r}; it has {', '.join(values)}")
    return values[name]


def section(name):
    """A section of the running cohort as it stands in `params.yaml`."""
    return read_yaml(root() / "params.yaml")[cohort()][name]


def params(section, into, name=None):
    """Section `section` of the running cohort, or of cohort `name`, as the frozen dataclass `into`.

    into: may be {source: dataclass}; then the section's own `source` chooses.
    """
    name = name or cohort()
    sections = read_yaml(root() / "params.yaml").get(name)
    if not isinstance(sections, dict) or section not in sections:
        found = "no such cohort" if not isinstance(sections, dict) else f"it has {', '.join(sections)}"
        raise ValueError(f"params.yaml: {name} has no section {section!r}; {found}")
    values = sections[section]
    if isinstance(into, dict):
        into = of_source(into, values, f"params.yaml: {name}.{section}")
    return build(into, values, f"params.yaml: {name}.{section}")


def of_source(classes, values, where):
    """The dataclass that a section's `source` names."""
    if values.get("source") not in classes:
        raise ValueError(f"{where}: source is {values.get('source')!r}, expected one of {', '.join(classes)}")
    return classes[values["source"]]


def build(into, values, where):
    """Dictionary → frozen dataclass; lists become tuples, integers may stand for floats, nothing else gives."""
    hooks = {float: lambda v: float(v) if isinstance(v, int) and not isinstance(v, bool) else v}
    try:
        return dacite.from_dict(into, values or {}, dacite.Config(strict=True, cast=[tuple], type_hooks=hooks))
    except (dacite.DaciteError, ValueError, TypeError) as error:
        fields = ", ".join(into.__dataclass_fields__)
        raise ValueError(f"{where}: {error} (known: {fields})") from error


def data_folder(stage):
    """data/<cohort>/<stage>, which only that stage writes."""
    return root() / "data" / cohort() / stage


def models_folder():
    return root() / "models" / cohort()


def results_folder():
    return root() / "results" / cohort()


def figures_folder():
    return root() / "figures" / cohort()


def stage_of(notebook, top):
    """The stage of `dvc.yaml` whose dependencies name `notebook` (or module), or None."""
    stages = read_yaml(top / "dvc.yaml")["stages"] if (top / "dvc.yaml").is_file() else {}
    return next((s for s in stages.values() if notebook in s["deps"]), None)


def fingerprint(path):
    """What changes when a file changes: MD5 of small files, size and time of large ones and of folders' files."""
    if path.is_dir():
        return tuple((p.name, fingerprint(p)) for p in sorted(path.iterdir()))
    if not path.is_file():
        return None
    stat = path.stat()
    return hashlib.md5(path.read_bytes()).hexdigest() if stat.st_size < 1e7 else (stat.st_size, stat.st_mtime_ns)


def lookup(values, dotted):
    for key in dotted.split("."):
        values = values[key] if isinstance(values, dict) and key in values else None
    return values


@contextmanager
def steady_dependencies(entry, **item):
    """Fail if a dependency or parameter of the stage changed while it ran.

    DVC hashes dependencies after the command: an edit made meanwhile would be recorded as if it had made
    the results.  entry: the stage's notebook or module, relative to the root; item: the matrix values.
    """
    top = root()
    stage, name = stage_of(entry, top), cohort()

    def resolve(text):
        for key, value in {"cohort": name, **{f"item.{k}": v for k, v in item.items()}}.items():
            text = text.replace(f"${{{key}}}", str(value))
        return text

    def state():
        values = read_yaml(top / "params.yaml")
        files = {d: fingerprint(top / d) for d in map(resolve, stage["deps"])}
        return files | {f"params.yaml: {p}": lookup(values, p) for p in map(resolve, stage.get("params", []))}

    before = state() if stage else {}
    yield
    changed = sorted(k for k, v in state().items() if before[k] != v) if stage else []
    if changed:
        raise ValueError(
            f"changed while the stage ran, so its results belong to neither version: {', '.join(changed)}"
        )
