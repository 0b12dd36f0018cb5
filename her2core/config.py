"""A study's parameters → frozen dataclasses, its folders, and the guard that keeps DVC's record true.

The top-level `params.yaml` is the embedded study, complete.  Any other study is a folder, studies/<name>/.  Its
`params.yaml` has a name, runs and patients (`acquire`) of its own; of every other section it holds what differs,
and the rest is that of the top level.  The dataclasses live beside the code they configure; a key that lacks, is
unknown or has a wrong value is an error that names it: no default in the code fills a gap of the file.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

import dacite
from ruamel.yaml import YAML  # YAML 1.2, the parser DVC uses: PyYAML reads 1e-5 as a string
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError

from her2core.formats.boundary import reading

OWN = ("name", "runs", "acquire")  # what stands whole in every study
MERGED = ("cohort", "prepare", "models", "train", "evaluate")  # taken from the top level, but for what differs
_KINDS = {"name": str, "runs": tuple[str, ...], "acquire": dict, **dict.fromkeys(MERGED, dict)}
_Sections = make_dataclass("_Sections", _KINDS.items())  # of a `params.yaml`
_LARGEST_YAML = 200_000  # characters; the largest of ours, dvc.yaml, has 21,000
BANNER = "synthetic cohort: phantom images, no patients; no number here tests a number of the paper"


@dataclass(frozen=True)
class Endpoint:
    """What is predicted.  positive, negative: the two classes in figures and tables.  words: what it is."""

    positive: str
    negative: str
    words: str

    def of(self, label: int) -> str:
        """What a class is called."""
        return self.positive if label else self.negative

    @property
    def unknown(self) -> str:
        """The reason why a patient without it is out."""
        return f"{self.positive.removesuffix('+').removesuffix(', positive')} unknown"


ENDPOINTS = {
    "her2": Endpoint("HER2+", "HER2−", "HER2 status"),
    "hr": Endpoint("HR+", "HR−", "hormone receptor status"),
    "triple_negative": Endpoint("triple-negative", "not triple-negative", "triple-negative status"),
    "pcr": Endpoint("pCR", "no pCR", "pathological complete response"),
}


class Title(str):
    """A study's cohort in words, as figures and tables show it, and what they call the classes."""

    endpoint: Endpoint = ENDPOINTS["her2"]


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


class _Plain(Composer):
    def compose_node(self, parent, index):
        event = self.parser.peek_event()
        if event.anchor or len(self.parser.states) > 60:  # of about two for a level; ruamel takes seconds for 300
            found = f"anchor or alias {event.anchor!r}" if event.anchor else "too many levels"
            raise ComposerError(problem=found, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's keys with their values; ValueError for any other, and for aliases: ten lines of them can stand
    for a billion values."""
    with reading(path, "keys with their values, as YAML without aliases, in UTF-8"):
        if len(text := Path(path).read_text("utf-8-sig")) > _LARGEST_YAML:
            raise ValueError(f"{len(text):,} characters, more than {_LARGEST_YAML:,}")
        yaml = YAML(typ="safe", pure=True)
        yaml.Composer = _Plain
        try:
            values = yaml.load(text)
        except MarkedYAMLError as error:  # its own text has six lines
            raise ValueError(f"line {error.problem_mark.line + 1}: {error.problem}") from error
        if not isinstance(values, dict):
            raise ValueError("nothing in it" if values is None else f"a {type(values).__name__}")
    return values


def _read_sections(path, top):
    """A `params.yaml`: all its sections, and no other."""
    try:
        build(_Sections, values := read_yaml(path), path.relative_to(top))
    except ValueError as error:
        raise Unready(str(error)) from error
    return values


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
        common = _read_sections(top / "params.yaml", top)
        if name in (None, common["name"]):
            return cls(common["name"], top, common)
        path = top / "studies" / str(name) / "params.yaml"
        if not path.is_file():
            known = ", ".join([common["name"], *sorted(p.parent.name for p in top.glob("studies/*/params.yaml"))])
            raise Unready(f"no study {name!r}; there are {known}.  A new one is made by: her2 study {name}")
        own = _read_sections(path, top)
        if own["name"] != name:
            raise Unready(f"{path.relative_to(top)}: name is {own['name']!r}, expected {name!r}, the folder's")
        return cls(name, top, {k: merge(common[k], v) if k in MERGED else v for k, v in own.items()})

    @property
    def folder(self) -> Path:
        """Where its `params.yaml` and `dvc.yaml` lie."""
        own = self.top / "studies" / self.name
        return own if own.is_dir() else self.top

    def section(self, name: str) -> Any:
        """One section's values as they are."""
        return self.values[name]

    def params(self, section: str, into: type | dict[str, type]) -> Any:
        """A section as the frozen dataclass `into`, which may be {source: dataclass}: then the section's own
        `source` chooses."""
        values, where = self.section(section), f"{(self.folder / 'params.yaml').relative_to(self.top)}: {section}"
        if isinstance(into, dict):
            if (source := values.get("source")) not in [*into]:
                raise Unready(f"{where}: source is {source!r}, expected one of {', '.join(into)}")
            into = into[source]
        return build(into, values, where)

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of what is trained."""
        return tuple(self.section("runs"))

    @property
    def is_synthetic(self) -> bool:
        """Whether its patients are phantoms."""
        return lookup(self.values, "acquire.source") == "phantom"

    @property
    def endpoint(self) -> str:
        """What is predicted, one of ENDPOINTS."""
        if (name := lookup(self.values, "cohort.endpoint")) not in ENDPOINTS:
            raise Unready(f"{self.name}: cohort.endpoint is {name!r}, expected one of {', '.join(ENDPOINTS)}")
        return name

    @property
    def title(self) -> Title:
        """Its cohort in words, for figures and tables."""
        title = Title(f"{self.name} synthetic cohort" if self.is_synthetic else f"{self.name} cohort")
        title.endpoint = ENDPOINTS[self.endpoint]
        return title

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


def build(into: type, values: dict, where: str, optional: bool = False) -> Any:
    """Dictionary → frozen dataclass; lists become tuples, integers may become floats, nothing else is converted.

    optional: keys may be left out; otherwise every field, of a dataclass inside too, has to be among `values`.
    """
    hooks = {float: lambda v: float(v) if type(v) is int else v}
    hooks[int] = lambda v: str(v) if isinstance(v, bool) else v  # Python takes True for 1
    try:
        if not isinstance(values, dict):
            raise TypeError(f"a {type(values).__name__}, not keys with their values")
        built = dacite.from_dict(into, _frozen(values), dacite.Config(strict=True, type_hooks=hooks))
        if not optional and (lacking := [*_lacking(built, values)]):
            raise ValueError(f"missing {', '.join(lacking)}")
    except Exception as error:  # a wrong value may raise anything in a dataclass
        raise Unready(f"{where}: {error} (expected: {', '.join(into.__dataclass_fields__)})") from error
    return built


def _frozen(value, place=""):
    """Lists as tuples, however deep; ValueError for a number that is not finite, and what YAML makes of a date."""
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str | int | float)]:
            raise ValueError(f"{place}{strange[0]} is no name")
        return {key: _frozen(item, f"{place}{key}: ") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_frozen(item, place) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}{value} is no finite number")
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{place}{value} is a {type(value).__name__}, expected a number, or text in quotes")
    return value


def _lacking(built, values):
    """The fields of a dataclass, and of those inside, that are not among `values`."""
    for name, item in vars(built).items():
        if name not in values:
            yield name
        elif is_dataclass(item):
            yield from (f"{name}.{inner}" for inner in _lacking(item, values[name]))


def lookup(values: Any, dotted: str) -> Any:
    """The value at a place such as "train.lr"; None where there is none."""
    for key in dotted.split("."):
        values = values[key] if isinstance(values, dict) and key in values else None
    return values


def stages_of(pipeline: Path) -> dict[str, dict]:
    """The stages of a `dvc.yaml`."""
    values = read_yaml(pipeline)
    with reading(pipeline, "stages as DVC has them"):
        return {name: dict(stage) for name, stage in values["stages"].items()}


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
        why = "changed while the stage ran, so its results are of neither version"
        raise ValueError(f"{why}: {', '.join(changed)}")


def _stage_of(entry, pipeline):
    """The stage that runs the notebook or module; an empty one if none does."""
    stages = stages_of(pipeline) if pipeline.is_file() else {}
    command = f"her2core.run {Path(entry).stem}" if entry.endswith(".ipynb") else entry[:-3].replace("/", ".")
    return next((stage for stage in stages.values() if f"-m {command} " in stage.get("cmd", "")), {})


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
