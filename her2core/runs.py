"""A run is one model under one window on raw or bias-corrected images: `thda-channel_q98-raw`, all its seeds.

Its name says all of it, so that a further run is one more line under `runs` in `params.yaml`.  A name may leave
out the window, then it is that of the study's reference, and the bias field, then the images are raw: `vit`,
`thda-n4`.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load, save
from tqdm import tqdm

from her2core.baselines import MODELS, ModelConfig, build_model, is_model
from her2core.cohort import CohortConfig
from her2core.config import Study
from her2core.dataset import BIAS_FIELDS, Prepared, Slices, seen_by
from her2core.formats.boundary import reading
from her2core.parallel import CODE_DIGEST, each
from her2core.records import read_digests, whole, write_digests
from her2core.train import TrainConfig, choose_device, fit, predict, seed_everything

_CHECKPOINTS = ".checkpoints"  # beside the folders of the runs' weights


@dataclass(frozen=True)
class Run:
    """What is trained, how, on what, and where its weights lie.

    name: model[-window][-bias_field], as it stands in `params.yaml`.  models: the study's, as is cohort, its name.
    training: the study's, with what its model has for itself.  prepared: the folder of the stage `prepare`.
    folder: that of the run's weights, one file a seed.  frozen: the table of their digests, which git keeps.
    stage: what `dvc repro` calls the stage that trains it.  folds, repeats: those of the cohort's split; under
    folds a seed has a network for each fold of its partition."""

    name: str
    model: str
    window: str
    bias_field: str
    models: ModelConfig
    training: TrainConfig
    cohort: str
    prepared: Path
    folder: Path
    frozen: Path
    stage: str
    folds: int | None = None
    repeats: int = 1

    @classmethod
    def of(cls, study: Study, name: str | None = None) -> "Run":
        """A run of a study by its name; without one the reference, with which all others are compared."""
        training, models = study.params("train", TrainConfig), study.params("models", ModelConfig)
        name, split = name or training.reference, study.params("cohort", CohortConfig)
        parts = parse_run(name, training.window)
        training = training.of_model(parts[0])
        if split.repeats > len(training.seeds):
            raise ValueError(f"cohort.repeats: {split.repeats}, expected a seed for each in {training.seeds}")
        places = study.data("prepare"), study.models / name, study.results / "weights" / f"{name}.csv"
        stage = study.target(f"train@{name}")
        return cls(name, *parts, models, training, study.name, *places, stage, split.folds, split.repeats)

    @property
    def device(self) -> torch.device:
        return choose_device(self.training.device)

    @property
    def sees_neighbours(self) -> bool:
        """Whether its heads see adjacent slices."""
        return self.model.startswith("thda") and self.models.thda_of(self.model).head_input == "adjacent_slices"

    @property
    def opened(self) -> Prepared:
        """What its slices are made of."""
        return Prepared.open(self.prepared, self.bias_field)

    @property
    def image_px(self) -> int:
        """Edge of a slice."""
        return self.opened.images.shape[-1]

    @property
    def members(self) -> list[tuple[int, int | None]]:
        """(seed, fold) of each of its networks; without folds the fold is None."""
        k, seeds = self.folds, enumerate(self.training.seeds)
        return [(seed, k and n % self.repeats * k + fold) for n, seed in seeds for fold in range(k or 1)]

    def views(self, table: pd.DataFrame) -> Iterator[tuple[int | None, list[int], pd.DataFrame]]:
        """A table with a column split as networks see it: (fold, its seeds, table) of each fold, or one of None."""
        for fold in dict.fromkeys(fold for _, fold in self.members):
            seen = table.assign(split=seen_by(table["split"], fold, self.folds)) if self.folds else table
            yield fold, [seed for seed, its in self.members if its == fold], seen

    def slices(self, rows: np.ndarray | None = None, fold: int | None = None) -> Slices:
        """What its networks are fed; rows: of some slices only, by number.

        fold: split as its networks see the patients, and under a window that learns from those they train on."""
        prepared = self.opened
        if fold is not None:
            prepared = replace(prepared, split=seen_by(prepared.split, fold, self.folds))
        return prepared.under(self.window, self.device, self.sees_neighbours, rows)

    def placed(self, slices: Slices) -> Slices:
        """The same slices on the run's device, wherever they lay."""
        return replace(slices, images=slices.images.to(self.device))

    def fresh(self, seed: int | None = None) -> torch.nn.Module:
        """A network with random weights, those of `seed` where one is given; on the CPU, ready to predict.

        Random also where training starts from pretrained weights: it needs no file of them."""
        if seed is not None:
            torch.manual_seed(seed)
        return build_model(self.model, self.models, self.image_px, pretrained=False).eval()

    def freeze(self, weights: dict[tuple[int, int | None], dict[str, torch.Tensor]]) -> None:
        """{(seed, fold): weights} → a file each, all or none, and a table of digests; the same bytes twice.

        Then the run's checkpoints, see `train_run`, are no longer needed, and go."""
        with whole(self.folder) as part:
            part.mkdir()
            for member, tensors in weights.items():
                (part / _file_name(*member)).write_bytes(save(tensors))
        write_digests(self.frozen, [self.folder / _file_name(*member) for member in weights])
        shutil.rmtree(self.folder.parent / _CHECKPOINTS / self.name, ignore_errors=True)

    def networks(self) -> list[torch.nn.Module]:
        """The network of each of `members`, ready to predict; ValueError unless its file is what training froze."""
        again, networks = f"run: dvc repro {self.stage}", []
        paths, known = [self.folder / _file_name(*m) for m in self.members], read_digests(self.frozen, again)
        if odd := known.keys() ^ {path.name for path in paths}:
            raise ValueError(f"{self.frozen}: {min(odd)} is missing or not expected, one per network is; {again}")
        for path in paths:
            network = self.fresh()
            with reading(path, f"the weights of {self.name} that training froze", again):
                content = path.read_bytes()  # what is loaded is what was compared
                if (found := hashlib.sha256(content).hexdigest()) != known[path.name]:
                    raise ValueError(f"its SHA-256 is {found[:12]}, not {known[path.name][:12]}")
                network.load_state_dict(load(content))
            networks.append(network.to(self.device))
        return networks

    def each_of(self, what: Sequence, train: Callable, label: str) -> list:
        """[train(one) of all, such as `members`]: side by side on a CPU, one after the other on a GPU."""
        if self.device.type != "cpu":
            return [train(one) for one in what]
        return each(train, what, self.training.jobs, label, unit="training")

    def predict(self, *splits: str, slices: Slices | None = None, aggregate: str | None = None) -> pd.DataFrame:
        """The frozen networks on some splits: the prediction table, see `evaluate.COLUMNS`.

        slices: `self.slices()`, where they are at hand; a fold takes its own.  aggregate: if not the study's."""
        seed_everything(0, self.training)
        slices = self.placed(slices) if slices else self.slices()
        aggregate = aggregate or self.training.aggregate
        parts = []
        for (seed, fold), network in zip(self.members, self.networks(), strict=True):
            seen = self.slices(fold=fold) if self.folds else slices
            for split in splits:
                patient, label, probability = predict(network, seen.of_split(split), aggregate)
                rows = {"cohort": self.cohort, "patient": patient, "split": split, "label": label, "run": self.name}
                rows |= {"model": self.model, "window": self.window, "bias_field": self.bias_field, "seed": seed}
                rows |= {"fold": fold} if self.folds and split != "external" else {}
                parts.append(pd.DataFrame(rows | {"probability": probability.round(6)}))
        table = pd.concat(parts, ignore_index=True)
        same = [*table.columns.drop("probability")]  # of an external patient every fold of a seed: its mean counts
        return table.groupby(same, sort=False, dropna=False, as_index=False)["probability"].mean().round(6)


def _file_name(seed, fold):
    return f"seed{seed}.safetensors" if fold is None else f"seed{seed}-fold{fold}.safetensors"


def parse_run(name: str, window: str) -> tuple[str, str, str]:
    """A run's name → model, window, bias field; window: that of a name without one."""
    model, *rest = name.split("-")
    bias_field = rest.pop() if rest and rest[-1] in BIAS_FIELDS else "raw"
    if not is_model(model) or len(rest) > 1:
        raise ValueError(
            f"run {name!r}: expected model[-window][-bias_field] such as vit or thda-channel_q98-raw, "
            f"models {', '.join(MODELS)} or thda_<variant>, bias fields {', '.join(BIAS_FIELDS)}"
        )
    window = rest[0] if rest else window
    return model, window, bias_field


def train_run(run: Run, slices: Slices, checkpoints: Path | None = None) -> tuple[dict[tuple, dict], pd.DataFrame]:
    """All networks of a run on its device, on the CPU side by side: {(seed, fold): weights}, and their histories.

    slices: `run.slices()`; a fold takes its own.  checkpoints: a folder that survives a kill; called again, the run
    goes on where each network was.  It must not lie in a stage's output, which a new run replaces; beside those it
    is called .checkpoints, and `Run.freeze` empties it."""
    at_hand = None if run.folds else run.placed(slices)
    train = partial(_train_member, run=run, slices=at_hand, checkpoints=checkpoints)
    results = run.each_of(run.members, train, "networks")
    weights = {member: w for member, (w, _) in zip(run.members, results, strict=True)}
    return weights, pd.DataFrame([row for _, history in results for row in history])


def _train_member(member, run, slices, checkpoints):
    """One training, start to end → its weights (on the CPU) and history."""
    (seed, fold), file = member, _file_name(*member)
    slices = run.slices(fold=fold) if run.folds else slices
    config = run.training
    build = partial(build_model, run.model, run.models, slices.images.shape[-1])
    bar = partial(tqdm, desc=f"{run.name} {file.split('.')[0]}", unit="epoch", position=run.members.index(member))
    checkpoint = checkpoints / run.name / file if checkpoints else None
    train, validation = slices.of_split("train"), slices.of_split("validation")
    if config.patients:
        train = train.some_patients(config.patients, seed if config.redraw else None)
    model, history = fit(build, train, validation, config, seed, bar, checkpoint, CODE_DIGEST)
    history = [{"seed": seed, "fold": fold} | row for row in history] if run.folds else history
    return {k: v.cpu().contiguous() for k, v in model.state_dict().items()}, history


def aggregated(run: Run, *splits: str, slices: Slices, ways: tuple[str, ...] = ("mean", "max")) -> pd.DataFrame:
    """Prediction tables of a run's frozen seeds with slices aggregated otherwise, as models `aggregate_<way>`."""
    tables = {f"aggregate_{way}": run.predict(*splits, slices=slices, aggregate=way) for way in ways}
    return pd.concat([t.assign(model=name, run=name) for name, t in tables.items()], ignore_index=True)


@torch.inference_mode()
def gates(networks: list[torch.nn.Module], images: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """THDA's gates, averaged over networks: images `(N, P, H, W)` uint8 → {"stage1": {"channel": `(N, P, C)`,
    "spatial": `(N, P, h, w)`}, …}."""
    found = [network(images.float() / 255, return_attention=True)[1] for network in networks]
    return {
        stage: {kind: torch.stack([each[stage][kind] for each in found]).mean(0) for kind in kinds}
        for stage, kinds in found[0].items()
    }


@torch.inference_mode()
def spatial_attention(networks: list[torch.nn.Module], images: torch.Tensor) -> torch.Tensor:
    """Where THDA's spatial gates are open: images `(N, P, H, W)` uint8 → `(N, P, H, W)` in [0, 1].

    The gates of all stages at the image's resolution, averaged over stages and networks."""
    resized = partial(torch.nn.functional.interpolate, size=images.shape[-2:], mode="bilinear")
    acted = [network(images.float() / 255, return_attention=True)[1] for network in networks]
    return torch.stack([resized(stage["spatial"]) for stages in acted for stage in stages.values()]).mean(0)


def attention_inside(maps: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of each slice's attention that lies in its lesion, and the lesion's share of the image: `(N,)` each.

    maps: `(N, P, H, W)`; masks: `(N, H, W)` bool.  Attention is taken above each map's minimum: gates that are open
    everywhere attend to nothing."""
    above = maps - maps.amin((2, 3), keepdim=True)  # (N, P, H, W)
    inside = (above * masks[:, None]).sum((1, 2, 3)) / above.sum((1, 2, 3)).clamp(min=1e-12)
    return inside, masks.float().mean((1, 2))
