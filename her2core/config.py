"""A study's parameters → frozen dataclasses, its folders, and the guard that keeps DVC's record true.

The top-level `params.yaml` is the embedded study, complete.  Any other study is a folder, studies/<name>/.  Its
`params.yaml` has a name, runs and patients (`acquire`) of its own; of every other section it holds what differs,
and the rest is that of the top level.  The dataclasses live beside the code they configure; an unknown key or a
wrong type is an error that names it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dacite
from ruamel.yaml import YAML  # YAML 1.2, the parser DVC uses: PyYAML reads 1e-5 as a string

OWN = ("name", "runs", "acquire")  # what stands whole in every study
MERGED = ("prepare", "models", "train", "evaluate")  # what a study takes from the top level, but for what differs
BANNER = "embedded synthetic cohort: phantom images, no patients; no number here tests a number of the paper"


class Unready(ValueError):
    """Something has to be done first; the message says what.  Jupyter shows that one line and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def root() -> Path:
    """The compendium's folder: the first one at or above the working directory with a `params.yaml`, a study's
    folder left out.

    Not taken from this file's place: an editable install would tie every clone to the first checkout.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and folder.parent.name != "studies":
            return folder
    raise Unready(f"no params.yaml in {here} or above it: start inside the compendium")


def read_yaml(path: Path) -> Any:
    """A YAML file as dictionaries, lists and values."""
    return YAML(typ="safe").load(Path(path))


@dataclass(frozen=True)
class Study:
    """One study: a cohort, what is trained on it, and every number of both.

    top: the compendium's folder.  values: {section: parameters}, merged with the top level's.
    """

    name: str
    top: Path
    values: dict[str, Any]

    @classmethod
    def open(cls, name: str | None = None) -> "Study":
        """The study of that name; the top level's without one."""
        top = root()
        common = read_yaml(top / "params.yaml")
        if name in (None, common.get("name")):
            return cls(common["name"], top, common)
        path = top / "studies" / str(name) / "params.yaml"
        if not path.is_file():
            known = ", ".join([common["name"], *sorted(p.parent.name for p in top.glob("studies/*/params.yaml"))])
            raise Unready(f"no study {name!r}; there are {known}.  A new one is made by: her2 study {name}")
        own = read_yaml(path)
        where = path.relative_to(top)
        if missing := [key for key in (*OWN, *MERGED) if key not in own]:
            raise Unready(f"{where} lacks {', '.join(missing)}; where nothing differs write: {missing[-1]}: {{}}")
        if own["name"] != name:
            raise Unready(f"{where}: name is {own['name']!r}, expected {name!r}, the folder's")
        return cls(name, top, {k: merge(common[k], v) if k in MERGED else v for k, v in own.items()})

    @property
    def folder(self) -> Path:
        """Where its `params.yaml` and `dvc.yaml` lie."""
        own = self.top / "studies" / self.name
        return own if own.is_dir() else self.top

    def section(self, name: str) -> Any:
        """One section's values as they are."""
        if name not in self.values:
            raise ValueError(f"{self.name} has no section {name!r}; it has {', '.join(self.values)}")
        return self.values[name]

    def params(self, section: str, into: type | dict[str, type]) -> Any:
        """A section as the frozen dataclass `into`, which may be {source: dataclass}: then the section's own
        `source` chooses."""
        values, where = self.section(section), f"{self.name}: {section}"
        return build(of_source(into, values, where) if isinstance(into, dict) else into, values, where)

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of what is trained."""
        names = self.section("runs")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{self.name}: runs: expected a list of names such as thda-n4, found {names!r}")
        return tuple(names)

    @property
    def is_synthetic(self) -> bool:
        """Whether its patients are phantoms."""
        return self.section("acquire")["source"] == "phantom"

    @property
    def title(self) -> str:
        """Its cohort in words, for figures and tables."""
        return f"{self.name} synthetic cohort" if self.is_synthetic else f"{self.name} cohort"

    def data(self, stage: str) -> Path:
        """data/<study>/<stage>, which only that stage writes."""
        return self.top / "data" / self.name / stage

    @property
    def models(self) -> Path:
        return self.top / "models" / self.name

    @property
    def results(self) -> Path:
        return self.top / "results" / self.name

    @property
    def figures(self) -> Path:
        return self.top / "figures" / self.name

    def target(self, stage: str) -> str:
        """What `dvc repro` calls a stage of this study."""
        return stage if self.folder == self.top else f"studies/{self.name}/dvc.yaml:{stage}"

    def need(self, stage: str, *paths: Path) -> None:
        """Raise `Unready` with the command to run unless all that `stage` should have written is there."""
        if missing := [path for path in paths if not path.exists()]:
            what = missing[0].relative_to(self.top)
            raise Unready(f"{what} is not there yet; run first: dvc repro {self.target(stage)}")


def merge(common: Any, own: Any) -> Any:
    """`own` over `common`: mappings key by key and deeply, anything else replaced."""
    if isinstance(common, dict) and isinstance(own, dict):
        return common | {k: merge(common.get(k), v) for k, v in own.items()}
    return own


def of_source(classes: dict[str, type], values: dict, where: str) -> type:
    """The dataclass that a section's `source` names."""
    if values.get("source") not in classes:
        raise ValueError(f"{where}: source is {values.get('source')!r}, expected one of {', '.join(classes)}")
    return classes[values["source"]]


def build(into: type, values: dict | None, where: str) -> Any:
    """Dictionary → frozen dataclass; lists become tuples, integers may become floats, nothing else is converted."""
    hooks = {float: lambda v: float(v) if isinstance(v, int) and not isinstance(v, bool) else v}
    try:
        return dacite.from_dict(into, values or {}, dacite.Config(strict=True, cast=[tuple], type_hooks=hooks))
    except (dacite.DaciteError, ValueError, TypeError) as error:
        fields = ", ".join(into.__dataclass_fields__)
        raise ValueError(f"{where}: {error} (known: {fields})") from error


def lookup(values: Any, dotted: str) -> Any:
    """The value at a place such as "train.lr"; None where there is none."""
    for key in dotted.split("."):
        values = values[key] if isinstance(values, dict) and key in values else None
    return values


def tracked(stage: dict) -> set[str]:
    """The sections that a stage of a `dvc.yaml` tracks, whichever file they stand in."""
    keys = [entry if isinstance(entry, dict) else {"": [entry]} for entry in stage.get("params", [])]
    return {key for files in keys for names in files.values() for key in names}


@contextmanager
def steady_dependencies(entry: str, study: Study, **item: str) -> Iterator[None]:
    """Fail if a dependency or parameter of the stage changed while it ran.

    DVC hashes dependencies after the command: an edit made meanwhile would be recorded as if it had made the
    results.  entry: the stage's notebook or module, relative to the root; item: the matrix values.
    """
    stage = _stage_of(entry, study.folder / "dvc.yaml")
    before = _state(stage, study, item)
    yield
    now = _state(stage, Study.open(study.name), item)
    if changed := sorted(k for k, v in now.items() if before[k] != v):
        raise ValueError(
            f"changed while the stage ran, so its results belong to neither version: {', '.join(changed)}"
        )


def _stage_of(entry, pipeline):
    """The stage whose dependencies name the notebook or module; an empty one if none does."""
    stages = read_yaml(pipeline)["stages"] if pipeline.is_file() else {}
    return next((s for s in stages.values() if entry in s["deps"]), {})


def _state(stage, study, item):
    """What the stage's files and parameters are now."""
    files = {}
    for path in stage.get("deps", []):
        for key, value in {"name": study.name, **{f"item.{k}": v for k, v in item.items()}}.items():
            path = path.replace(f"${{{key}}}", str(value))
        files[path] = _fingerprint(study.top / path)
    return files | {f"params.yaml: {key}": study.values.get(key) for key in tracked(stage)}


def _fingerprint(path):
    """What changes when a file changes: MD5 of small files, size and time of large ones and of folders' files."""
    if path.is_dir():
        return tuple((p.name, _fingerprint(p)) for p in sorted(path.iterdir()))
    if not path.is_file():
        return None
    stat = path.stat()
    return hashlib.md5(path.read_bytes()).hexdigest() if stat.st_size < 1e7 else (stat.st_size, stat.st_mtime_ns)
