"""A run is one model under one window on raw or bias-corrected images: `thda-channel_q98-raw`, all its seeds.

Its name says all of it, so that a further run is one more line under `runs` in `params.yaml`.  A name may leave
out the window, then it is that of the cohort's reference, and the bias field, then the images are raw: `vit`,
`thda-n4`.
"""

import hashlib
import shutil
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from her2core.baselines import MODELS, build_model, is_model
from her2core.dataset import BIAS_FIELDS, load_slices
from her2core.normalize import Window
from her2core.parallel import SOURCES, each
from her2core.train import fit, predict, seed_everything


@dataclass(frozen=True)
class Run:
    """name: model[-window][-bias_field], as it stands in `params.yaml`."""

    name: str
    model: str
    window: str
    bias_field: str

    @classmethod
    def parse(cls, name, window):
        """window: of a name that has none; `TrainConfig.window`."""
        model, *rest = name.split("-")
        bias_field = rest.pop() if rest and rest[-1] in BIAS_FIELDS else "raw"
        if not is_model(model) or len(rest) > 1:
            raise ValueError(
                f"run {name!r}: expected model[-window][-bias_field] such as vit or thda-channel_q98-raw, "
                f"models {', '.join(MODELS)} or thda_<variant>, bias fields {', '.join(BIAS_FIELDS)}"
            )
        window = rest[0] if rest else window
        Window.parse(window)
        return cls(name, model, window, bias_field)


def sees_neighbours(model, models):
    """Whether a model's heads see adjacent slices."""
    return model.startswith("thda") and models.thda_of(model).head_input == "adjacent_slices"


def slices_of(run, models, folder, device="cpu"):
    """What a run's network is fed, from what the stage `prepare` wrote."""
    return load_slices(folder, run.window, run.bias_field, device, sees_neighbours(run.model, models))


def train_seed(seed, run, slices, models, config, checkpoints):
    """One training, start to end → its weights (on the CPU) and history."""
    config = replace(config, lr=config.lr_of.get(run.model, config.lr))
    build = partial(build_model, run.model, models, slices.images.shape[-1])
    bar = partial(tqdm, desc=f"{run.name} seed {seed}", unit="epoch", position=config.seeds.index(seed))
    checkpoint = checkpoints / run.name / f"seed{seed}.safetensors" if checkpoints else None
    parts = slices.of_split("train"), slices.of_split("validation")
    model, history = fit(build, *parts, config, seed, bar, checkpoint, SOURCES)
    return {k: v.cpu().contiguous() for k, v in model.state_dict().items()}, history


def train_run(run, slices, models, config, checkpoints=None):
    """All seeds of a run: on the CPU side by side.  Returns {seed: weights} and the histories as one table.

    checkpoints: a folder that survives a kill; called again, the run goes on where each of its seeds was.  It
    must not lie in a stage's output, which DVC deletes first.  A run that ends removes its checkpoints.
    """
    train = partial(train_seed, run=run, slices=slices, models=models, config=config, checkpoints=checkpoints)
    if slices.images.device.type == "cpu":
        results = each(train, config.seeds, config.jobs, "seeds", unit="training")
    else:
        results = [train(seed) for seed in config.seeds]
    if checkpoints:
        shutil.rmtree(checkpoints / run.name)
    weights = {seed: w for seed, (w, _) in zip(config.seeds, results, strict=True)}
    return weights, pd.DataFrame([row for _, history in results for row in history])


def save_weights(weights, folder):
    """{seed: weights} → folder/seed<k>.safetensors; no pickle, the same bytes for the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, tensors in weights.items():
        partial_path = folder / f".seed{seed}.partial"
        save_file(tensors, partial_path)
        partial_path.replace(folder / f"seed{seed}.safetensors")


def digests(folder):
    """SHA-256 of each seed's weights: a table of file and sha256."""
    paths = sorted(folder.glob("seed*.safetensors"))
    rows = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
    return pd.DataFrame(rows, columns=["file", "sha256"])


def check_weights(folder, path):
    """Raise ValueError unless the weights in `folder` are those that training recorded in the table at `path`."""
    recorded, found = pd.read_csv(path), digests(folder)
    if not recorded.equals(found):
        other = recorded.merge(found, on="file", how="outer", suffixes=("", "_now"))
        name = other.loc[other["sha256"] != other["sha256_now"], "file"].iloc[0]
        raise ValueError(f"{folder.name}/{name}: not the weights that training froze ({path.name}); run it again")


def load_model(path, run, models, image_px):
    """Weights of one seed in their network, ready to predict."""
    model = build_model(run.model, models, image_px)
    model.load_state_dict(load_file(path))
    return model.eval()


def predictions(run, cohort, slices, splits, models, config, folder):
    """The frozen seeds of a run on some splits: the prediction table, sorted; see `evaluate.COLUMNS`."""
    seed_everything(0, config)
    parts = []
    for seed in config.seeds:
        path = folder / f"seed{seed}.safetensors"
        model = load_model(path, run, models, slices.images.shape[-1]).to(slices.images.device)
        for split in splits:
            patient, her2, probability = predict(model, slices.of_split(split), config.aggregate)
            rows = {"cohort": cohort, "patient": patient, "split": split, "her2": her2, "run": run.name}
            rows |= {"model": run.model, "window": run.window, "bias_field": run.bias_field}
            parts.append(pd.DataFrame(rows | {"seed": seed, "probability": probability.round(6)}))
    return pd.concat(parts, ignore_index=True)


def aggregated(run, cohort, slices, splits, models, config, folder, ways=("mean", "max")):
    """Prediction tables of a run's frozen seeds with slices aggregated otherwise, as models `aggregate_<way>`."""
    parts = []
    for way in ways:
        table = predictions(run, cohort, slices, splits, models, replace(config, aggregate=way), folder)
        parts.append(table.assign(model=f"aggregate_{way}", run=f"aggregate_{way}"))
    return pd.concat(parts, ignore_index=True)


def load_seeds(folder, run, models, image_px):
    """Every seed of a run, ready to predict; `folder` as `save_weights` filled it."""
    paths = sorted(folder.glob("seed*.safetensors"))
    if not paths:
        raise ValueError(f"no weights of {run.name} in {folder.name}/: run the training stage first")
    return [load_model(path, run, models, image_px) for path in paths]


@torch.inference_mode()
def spatial_attention(networks, images):
    """Where THDA's spatial gates are open: images `(N, P, H, W)` uint8 → `(N, P, H, W)` in [0, 1].

    The gates of all stages at the image's resolution, averaged over stages and networks.
    """
    maps = []
    for network in networks:
        _, gates = network(images.float() / 255, return_attention=True)
        for stage in gates.values():
            maps.append(torch.nn.functional.interpolate(stage["spatial"], images.shape[-2:], mode="bilinear"))
    return torch.stack(maps).mean(0)


def untrained(run, models, image_px, seeds):
    """Networks of the run's kind with fresh weights: what an attention map shows that was not learnt."""
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(build_model(run.model, models, image_px).eval())
    return networks


def attention_inside(maps, masks):
    """Share of each slice's attention that lies in its lesion, and the lesion's share of the image: `(N,)` each.

    maps: `(N, P, H, W)`; masks: `(N, H, W)` bool.  Attention is taken above each map's minimum: gates that are open
    everywhere attend to nothing.
    """
    above = maps - maps.amin((2, 3), keepdim=True)  # (N, P, H, W)
    inside = (above * masks[:, None]).sum((1, 2, 3)) / above.sum((1, 2, 3)).clamp(min=1e-12)
    return inside, masks.float().mean((1, 2))
