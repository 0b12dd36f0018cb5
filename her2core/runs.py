"""A run is one model under one window on raw or bias-corrected images: `thda-channel_q98-raw`, all its seeds.

Its name says all of it, so that a further run is one more line under `runs` in `params.yaml`.  A name may leave
out the window, then it is that of the study's reference, and the bias field, then the images are raw: `vit`,
`thda-n4`.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load, save
from tqdm import tqdm

from her2core.baselines import MODELS, ModelConfig, build_model, is_model
from her2core.config import Study
from her2core.dataset import BIAS_FIELDS, Prepared, Slices
from her2core.formats.boundary import reading
from her2core.parallel import CODE_DIGEST, each
from her2core.records import read_digests, whole, write_digests
from her2core.train import TrainConfig, choose_device, fit, predict, seed_everything


@dataclass(frozen=True)
class Run:
    """What is trained, how, on what, and where its weights lie.

    name: model[-window][-bias_field], as it stands in `params.yaml`.  models, training: the study's, as is cohort,
    its name.  prepared: the folder of the stage `prepare`.  folder: that of the run's weights, one file a seed.
    frozen: the table of their digests, which git keeps.  stage: what `dvc repro` calls the stage that trains it.
    """

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

    @classmethod
    def of(cls, study: Study, name: str | None = None) -> "Run":
        """A run of a study by its name; without one the reference, with which all others are compared."""
        training, models = study.params("train", TrainConfig), study.params("models", ModelConfig)
        name = name or training.reference
        parts = parse_run(name, training.window)
        places = study.data("prepare"), study.models / name, study.results / "weights" / f"{name}.csv"
        return cls(name, *parts, models, training, study.name, *places, study.target(f"train@{name}"))

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

    def slices(self, rows: np.ndarray | None = None) -> Slices:
        """What its networks are fed; rows: of some slices only, by number."""
        return self.opened.under(self.window, self.device, self.sees_neighbours, rows)

    def placed(self, slices: Slices) -> Slices:
        """The same slices on the run's device, wherever they lay."""
        return replace(slices, images=slices.images.to(self.device))

    def fresh(self, seed: int | None = None) -> torch.nn.Module:
        """A network with random weights, those of `seed` where one is given; on the CPU, ready to predict.

        Random also where training starts from pretrained weights: it needs no file of them.
        """
        if seed is not None:
            torch.manual_seed(seed)
        return build_model(self.model, self.models, self.image_px, pretrained=False).eval()

    def _file(self, seed):
        return self.folder / f"seed{seed}.safetensors"

    def freeze(self, weights: dict[int, dict[str, torch.Tensor]]) -> None:
        """{seed: weights} → a file a seed, all or none, and the table of their digests; the same bytes twice."""
        with whole(self.folder) as part:
            part.mkdir()
            for seed, tensors in weights.items():
                (part / self._file(seed).name).write_bytes(save(tensors))
        write_digests(self.frozen, [self._file(seed) for seed in weights])

    def networks(self) -> list[torch.nn.Module]:
        """The network of each seed, ready to predict; ValueError unless its file is what training froze."""
        again, paths, networks = f"run: dvc repro {self.stage}", [self._file(s) for s in self.training.seeds], []
        known = read_digests(self.frozen, again)
        if odd := known.keys() ^ {path.name for path in paths}:
            raise ValueError(f"{self.frozen}: {min(odd)} lacks or is too much, expected one per seed; {again}")
        for path in paths:
            network = self.fresh()
            with reading(path, f"the weights of {self.name} that training froze", again):
                content = path.read_bytes()  # what is loaded is what was compared
                if (found := hashlib.sha256(content).hexdigest()) != known[path.name]:
                    raise ValueError(f"its SHA-256 is {found[:12]}, not {known[path.name][:12]}")
                network.load_state_dict(load(content))
            networks.append(network.to(self.device))
        return networks

    def each_seed(self, train: Callable, label: str) -> list:
        """[train(seed) of every seed]: side by side on a CPU, one after the other on a GPU."""
        if self.device.type != "cpu":
            return [train(seed) for seed in self.training.seeds]
        return each(train, self.training.seeds, self.training.jobs, label, unit="training")

    def predict(self, *splits: str, slices: Slices | None = None, aggregate: str | None = None) -> pd.DataFrame:
        """The frozen seeds on some splits: the prediction table, see `evaluate.COLUMNS`.

        slices: `self.slices()`, where they are at hand.  aggregate: other than the study's.
        """
        seed_everything(0, self.training)
        slices = self.placed(slices) if slices else self.slices()
        aggregate = aggregate or self.training.aggregate
        parts = []
        for seed, network in zip(self.training.seeds, self.networks(), strict=True):
            for split in splits:
                patient, label, probability = predict(network, slices.of_split(split), aggregate)
                rows = {"cohort": self.cohort, "patient": patient, "split": split, "label": label, "run": self.name}
                rows |= {"model": self.model, "window": self.window, "bias_field": self.bias_field}
                parts.append(pd.DataFrame(rows | {"seed": seed, "probability": probability.round(6)}))
        return pd.concat(parts, ignore_index=True)


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


def train_run(run: Run, slices: Slices, checkpoints: Path | None = None) -> tuple[dict[int, dict], pd.DataFrame]:
    """All seeds of a run on its device, on the CPU side by side: {seed: weights}, and the histories as one table.

    checkpoints: a folder that survives a kill; called again, the run goes on where each of its seeds was.  It must
    not lie in a stage's output, which a new run replaces.  A run that ends removes its checkpoints.
    """
    train = partial(_train_seed, run=run, slices=run.placed(slices), checkpoints=checkpoints)
    results = run.each_seed(train, "seeds")
    if checkpoints:
        shutil.rmtree(checkpoints / run.name)
    weights = {seed: w for seed, (w, _) in zip(run.training.seeds, results, strict=True)}
    return weights, pd.DataFrame([row for _, history in results for row in history])


def _train_seed(seed, run, slices, checkpoints):
    """One training, start to end → its weights (on the CPU) and history."""
    config = replace(run.training, lr=run.training.lr_of.get(run.model, run.training.lr))
    build = partial(build_model, run.model, run.models, slices.images.shape[-1])
    bar = partial(tqdm, desc=f"{run.name} seed {seed}", unit="epoch", position=config.seeds.index(seed))
    checkpoint = checkpoints / run.name / f"seed{seed}.safetensors" if checkpoints else None
    parts = slices.of_split("train"), slices.of_split("validation")
    model, history = fit(build, *parts, config, seed, bar, checkpoint, CODE_DIGEST)
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

    The gates of all stages at the image's resolution, averaged over stages and networks.
    """
    resized = partial(torch.nn.functional.interpolate, size=images.shape[-2:], mode="bilinear")
    acted = [network(images.float() / 255, return_attention=True)[1] for network in networks]
    return torch.stack([resized(stage["spatial"]) for stages in acted for stage in stages.values()]).mean(0)


def attention_inside(maps: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of each slice's attention that lies in its lesion, and the lesion's share of the image: `(N,)` each.

    maps: `(N, P, H, W)`; masks: `(N, H, W)` bool.  Attention is taken above each map's minimum: gates that are open
    everywhere attend to nothing.
    """
    above = maps - maps.amin((2, 3), keepdim=True)  # (N, P, H, W)
    inside = (above * masks[:, None]).sum((1, 2, 3)) / above.sum((1, 2, 3)).clamp(min=1e-12)
    return inside, masks.float().mean((1, 2))
