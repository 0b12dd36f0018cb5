"""A frozen run and all that it needs to answer a case: from its study, or from a folder that was exported.

<folder>/config.json          the networks: see `_Described`
<folder>/preprocessing.json   from an examination to what they are fed: see `_Preprocessing`
<folder>/comparison.json      what an answer is held against: see `_Comparison`
<folder>/*.safetensors        the weights as training froze them, a file a network
<folder>/SHA256SUMS           digests of all files, as sha256sum writes them

Weights are read as safetensors alone, and nothing in a folder is executed.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load

from her2core.baselines import MODELS, CvtConfig, ModelConfig, VitConfig, build_model
from her2core.bias_field import N4Config
from her2core.calibration import Recalibration, fit_recalibration_or_none, youden_threshold
from her2core.case import MEASURES, Range, View, training_ranges
from her2core.config import ENDPOINTS, Study, Title, build
from her2core.evaluate import by_fold, read_predictions, seed_mean
from her2core.formats.boundary import reading
from her2core.model import ThdaConfig
from her2core.normalize import PHASES
from her2core.preprocess import PrepareConfig
from her2core.runs import Run

_FORMAT = "her2core-model-1"  # another number for whatever a reader of this one would misread
_ARCHITECTURES = {"thda": ThdaConfig, "resnet34_rgb": ThdaConfig, "vit": VitConfig, "cvt": CvtConfig}
_PREPARE = ("crop_mm", "crop_px", "slices", "quantiles", "early_s", "late_s", "n4")  # what a case meets of it
_SUM = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")
_AGAIN = "get the folder again from where it was exported"


@dataclass(frozen=True)
class _Member:
    """One network.  file: its weights, beside config.json.  fold: None where the study has none."""

    file: str
    seed: int
    fold: int | None


@dataclass(frozen=True)
class _Described:
    """The networks of a run.

    title: the study's cohort in words.  endpoint: of ENDPOINTS.  run: its name.  model: one of MODELS; a variant is
    "thda" with another architecture.  architecture: the fields of its config class.  image_px, channels: of what is
    fed, `(N, channels, image_px, image_px)` uint8, divided by 255.  aggregate: of a patient's slices.
    versions: of the packages that exported it.
    """

    format: str
    study: str
    title: str
    endpoint: str
    run: str
    model: str
    architecture: dict
    image_px: int
    channels: int
    phases: tuple[str, ...]
    aggregate: str
    networks: tuple[_Member, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class _Preprocessing:
    """From an examination to what is fed; see `PrepareConfig`, and `View` for what comes after the crop.

    quantiles: those that are counted of each patient.  cut: (slices beyond the lesion, pixels) of the volume in
    which they are counted, where the study's volumes were cut before; None: the whole.
    """

    crop_mm: float | None
    crop_px: int
    slices: int
    quantiles: tuple[float, ...]
    early_s: float
    late_s: float
    n4: N4Config
    view: View
    cut: tuple[int, int] | None

    @property
    def config(self) -> PrepareConfig:
        """As the stage `prepare` has it."""
        own = {name: getattr(self, name) for name in _PREPARE}
        own |= {"bias_fields": (self.view.bias_field,), "neighbours": self.view.neighbours}
        return PrepareConfig(**own, allow_missing=False, jobs=1)


@dataclass(frozen=True)
class _Comparison:
    """What an answer is held against.

    thresholds: {seed: Youden's, on its validation patients, under folds their mean}.  lines: a recalibration for
    each fold, or one; None where none could be fitted.  fitted_on: number of validation patients.  ranges: of the
    training patients, by measure.  scores: (label, mean probability) of the test patients, in no order of theirs.
    """

    thresholds: dict[str, float]
    lines: tuple[Recalibration | None, ...]
    fitted_on: int
    ranges: dict[str, Range]
    scores: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class FrozenModel:
    """A frozen run, with its networks on the device that answers, one for each of `described.networks`."""

    described: _Described
    preprocessing: _Preprocessing
    comparison: _Comparison
    networks: list[torch.nn.Module]

    @property
    def title(self) -> Title:
        """The study's cohort in words."""
        title = Title(self.described.title)
        title.endpoint = ENDPOINTS[self.described.endpoint]
        return title


def frozen_model(study: Study, name: str | None = None, versions: dict[str, str] | None = None) -> FrozenModel:
    """A run of a study, the reference without a name; `Unready` where it has not been computed, ValueError where
    its weights are not those that were frozen.  versions: of the packages that export it."""
    run, config = Run.of(study, name), study.params("prepare", PrepareConfig)
    table = study.results / "predictions" / f"{run.name}.csv"
    study.need("prepare", study.data("prepare"))
    study.need(f"train@{run.name}", run.folder, run.frozen, table)
    return FrozenModel(
        _described(study, run, versions or {}),
        _preprocessing(study, run, config),
        _comparison(run, config, read_predictions([table])),
        run.networks(),
    )


def _described(study, run, versions):
    is_thda = run.model.startswith("thda")
    model = "thda" if is_thda else run.model
    chosen = {"vit": run.models.vit, "cvt": run.models.cvt, "resnet34_rgb": run.models.thda}
    architecture = vars(run.models.thda_of(run.model) if is_thda else chosen[model])
    channels = len(PHASES) * (3 if run.sees_neighbours else 1)
    members = tuple(_Member(_file(*member), *member) for member in run.members)
    told = study.name, str(study.title), study.endpoint, run.name, model, architecture
    return _Described(_FORMAT, *told, run.image_px, channels, PHASES, run.training.aggregate, members, versions)


def _file(seed, fold):
    """As `Run.freeze` calls it."""
    return f"seed{seed}.safetensors" if fold is None else f"seed{seed}-fold{fold}.safetensors"


def _preprocessing(study, run, config):
    acquire = study.section("acquire")
    cut = (acquire["margin_slices"], acquire["crop_px"]) if acquire["source"] == "archive" else None
    own = {name: getattr(config, name) for name in _PREPARE}
    return _Preprocessing(**own, view=View.of(run), cut=cut)


def _comparison(run, config, predicted):
    validation = predicted[predicted["split"] == "validation"]
    thresholds = {
        str(seed): sum(each := [youden_threshold(*seed_mean(fold)) for fold in by_fold(own).values()]) / len(each)
        for seed, own in validation.groupby("seed")
    }
    lines = tuple(fit_recalibration_or_none(*seed_mean(fold)) for fold in by_fold(validation).values())
    label, mean = seed_mean(predicted[predicted["split"] == "test"])
    scores = tuple(sorted(zip(label.tolist(), mean.tolist(), strict=True)))
    ranges = training_ranges(run, config)
    return _Comparison(thresholds, lines, validation["patient"].nunique(), ranges, scores)


def _sums(folder):
    """{file: SHA-256} of SHA256SUMS."""
    with reading(folder / "SHA256SUMS", "a line per file, digest and name, as `her2 export` writes it", _AGAIN):
        lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
        found = [_SUM.fullmatch(line) for line in lines]
        if odd := [line for line, match in zip(lines, found, strict=True) if not match]:
            raise ValueError(f"found {odd[0][:90]!r}")
        return {match[2]: match[1] for match in found}


def _content(folder, name, sums):
    """The bytes of a file, after their digest was compared."""
    with reading(folder / name, "what was exported", _AGAIN):
        if name not in sums:
            raise ValueError("not in SHA256SUMS")
        content = (folder / name).read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != sums[name]:
            raise ValueError(f"its SHA-256 is {found[:12]}, not {sums[name][:12]}")
    return content


def _section(folder, name, into, sums):
    """One of the JSON files as its dataclass."""
    content = _content(folder, name, sums)
    with reading(folder / name, "a JSON object", _AGAIN):
        values = json.loads(content)
    if into is _Described and isinstance(values, dict) and values.get("format") != _FORMAT:
        found = f"{folder / name}: format {values.get('format')!r}, expected {_FORMAT!r}"
        raise ValueError(f"{found}: another version of her2core exported it; read it with that one or export again")
    return build(into, values, str(folder / name))


def _agree(folder, described, preprocessing, comparison):
    """ValueError where one of the files lacks what another needs."""
    again = f"; {_AGAIN}"
    if preprocessing.crop_px != described.image_px:
        found = f"crop_px {preprocessing.crop_px}, expected the networks' image_px {described.image_px}"
        raise ValueError(f"{folder / 'preprocessing.json'}: {found}{again}")
    seeds = {str(member.seed) for member in described.networks}
    for what, lacking in (
        ("threshold of seed", seeds - comparison.thresholds.keys()),
        ("range of", MEASURES.keys() - comparison.ranges.keys()),
    ):
        if lacking:
            raise ValueError(f"{folder / 'comparison.json'}: no {what} {', '.join(sorted(lacking))}{again}")


def _network(folder, described, member, sums):
    where = f"{folder / 'config.json'}: architecture"
    config = build(_ARCHITECTURES[described.model], described.architecture, where)
    kind = described.model if described.model in ("vit", "cvt") else "thda"
    models = ModelConfig(**{"thda": ThdaConfig(), kind: config})
    content = _content(folder, member.file, sums)
    with reading(folder / member.file, f"the weights of {described.run}", _AGAIN):
        network = build_model(described.model, models, described.image_px, pretrained=False)
        network.load_state_dict(load(content))
    return network.eval()


def read_model(folder: Path) -> FrozenModel:
    """What `her2 export` wrote, with its networks on the CPU; ValueError where a file lacks, is not what was
    exported, or is of another version of the format."""
    folder = Path(folder)
    sums = _sums(folder)
    described = _section(folder, "config.json", _Described, sums)
    if described.model not in MODELS or described.endpoint not in ENDPOINTS:
        found = f"model {described.model!r} of endpoint {described.endpoint!r}"
        expected = f"one of {', '.join(MODELS)} and of {', '.join(ENDPOINTS)}"
        raise ValueError(f"{folder / 'config.json'}: {found}, expected {expected}; {_AGAIN}")
    own = {"preprocessing.json": _Preprocessing, "comparison.json": _Comparison}
    sections = [_section(folder, name, into, sums) for name, into in own.items()]
    _agree(folder, described, *sections)
    networks = [_network(folder, described, member, sums) for member in described.networks]
    for name in sorted(sums.keys() - {*own, "config.json", *(member.file for member in described.networks)}):
        _content(folder, name, sums)
    return FrozenModel(described, *sections, networks)
