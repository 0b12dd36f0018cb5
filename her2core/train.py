"""The training loop, plain and visible.  It knows tensors and models, and no file but its own checkpoint.

Every choice here is unpublished in the paper and therefore a field of `TrainConfig`.  The weights that count
are chosen on validation patients; the test split is not seen.
"""

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from her2core.dataset import AugmentConfig, Slices, augment, draw_augmentation, epoch_batches
from her2core.formats.boundary import reading
from her2core.records import whole

AGGREGATE = {"median": np.median, "mean": np.mean, "max": np.max}
_OF_A_MODEL = ("seeds", "lr", "class_weight", "patients", "redraw")
_CHECKPOINT_S = 30.0  # least time between two checkpoints
_CHECKPOINT_SHARE = 0.1  # most of the training's time that they may take: one may be a gigabyte


@dataclass(frozen=True)
class TrainConfig:
    """window: of every run whose name has none; THDA under it is the reference, with which all others are compared.
    seeds: one training each.  epochs: passes over the training patients, one slice per patient and pass.
    lr: peak of AdamW's learning rate after `warmup` (fraction of all steps), then cosine to zero.
    class_weight: "balanced" weighs HER2+ by negatives / positives in the loss, "none" leaves it.
    patients: how many of the training patients are drawn to train on; None: all.  redraw: each seed draws its own,
        otherwise all have the same.
    of: {model: {seeds, lr, class_weight, patients or redraw: its own value}}, where a model needs another or asks
        what another would do.
    validate_every: epochs between looks at the validation patients; the best look is kept.
    patience: looks without a better AUC after which a training ends; None: it never ends early.
    aggregate: slice probabilities → patient: median, mean or max.
    device: "auto", "cpu", "cuda" or "mps".  threads: CPU threads per training (1 and 2 give other bits).
    jobs: trainings side by side on a CPU, -1 for one per core; a GPU trains one after the other.
    precision: "auto": on CUDA, training steps in bfloat16 over float32 weights and predictions with TF32
        convolutions, where the card has them; "float32": neither.  A CPU always computes in float32.
    compile: hand the network to `torch.compile`; needs a compiler, and minutes before the first step.
    deterministic: the same bytes twice; without it a GPU may choose faster algorithms.
    """

    window: str = "channel_q98"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 40
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    gradient_clip: float = 1.0
    class_weight: str = "balanced"
    patients: int | None = None
    redraw: bool = False
    of: dict[str, dict] = field(default_factory=dict)
    validate_every: int = 4
    patience: int | None = None
    aggregate: str = "median"
    device: str = "auto"
    threads: int = 1
    jobs: int = -1
    precision: str = "auto"
    compile: bool = False
    deterministic: bool = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        if self.class_weight not in ("balanced", "none"):
            raise ValueError(f"class_weight={self.class_weight!r}: expected balanced or none")
        if self.aggregate not in AGGREGATE:
            raise ValueError(f"aggregate={self.aggregate!r}: expected one of {', '.join(AGGREGATE)}")
        if self.precision not in ("auto", "float32"):
            raise ValueError(f"precision={self.precision!r}: expected auto or float32")
        counts = (self.epochs, self.batch_size, self.validate_every, self.threads)
        if not self.seeds or min(counts) < 1:
            raise ValueError(f"training needs a seed, an epoch, a batch, a validation and a thread, found {self}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: expected each once")
        if min(self.lr, self.gradient_clip) <= 0 or not 0 <= self.warmup <= 1:
            raise ValueError(f"expected lr, gradient_clip > 0 and 0 <= warmup <= 1, found {self}")
        if self.patients is not None and self.patients < 2:
            raise ValueError(f"patients={self.patients}: expected two or more, or null")
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise ValueError(f"device={self.device!r}: expected auto, cpu, cuda or mps")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience}: expected one validation or more, or null")

    def of_model(self, model: str) -> "TrainConfig":
        """The same with what `of` has for a model; ValueError for a field that all models share."""
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in self.of.get(model, {}).items()}
        if strangers := sorted(changes.keys() - _OF_A_MODEL):
            raise ValueError(f"train.of.{model}: {', '.join(strangers)} unknown, expected {', '.join(_OF_A_MODEL)}")
        return replace(self, **changes)

    @property
    def reference(self) -> str:
        """Name of the run with which all others are compared."""
        return f"thda-{self.window}-raw"


def choose_device(name: str) -> torch.device:
    """ "auto" → CUDA, else Apple's MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def seed_everything(seed: int, config: TrainConfig) -> torch.Generator:
    """Same seed, same thread count, same machine kind: same bytes."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    torch.backends.cudnn.allow_tf32 = config.precision == "auto"
    torch.backends.cudnn.benchmark = not config.deterministic  # its choice of algorithms differs between runs
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its sums in order only with it
    on_cpu = choose_device(config.device).type == "cpu"
    torch.use_deterministic_algorithms(config.deterministic, warn_only=not on_cpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid: a write for each new tensor
    return torch.Generator().manual_seed(seed)


def _learning_rate(step, steps, config):
    """Share of the peak: a linear warm-up, then a cosine down to zero."""
    warm = max(round(config.warmup * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _learning_rates(done, batches, config):
    """Learning rate of each of an epoch's batches, after `done` epochs of as many."""
    steps = range(done * batches, (done + 1) * batches)
    return [config.lr * _learning_rate(step, config.epochs * batches, config) for step in steps]


def _positive_weight(data, config):
    """Weight of positives in the loss: negatives / positives over the training patients."""
    if config.class_weight == "none":
        return torch.tensor(1.0)
    labels = data.label[data.patients()[0]]
    positives = int(labels.sum())
    if positives in (0, labels.size):
        raise ValueError(f"{positives} of {labels.size} training patients are positive: nothing to learn")
    return torch.tensor((labels.size - positives) / positives)


@dataclass
class Training:
    """All that changes while a network trains; saved and resumed whole, to the byte.

    network: the model, or its compiled twin with the same parameters.
    generator: that of the batches and the augmentation; dropout draws from torch's own.
    epoch: the last one done.  best: the weights of the best validation so far.
    history: one dict per validation with seed, epoch, loss, validation_auc.
    due: when the next checkpoint is worth its time.
    """

    model: torch.nn.Module
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    device: torch.device
    epoch: int = 0
    best: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    due: float = field(default_factory=lambda: time.monotonic() + _CHECKPOINT_S)

    def exhausted(self, patience: int | None) -> bool:
        """Whether the last `patience` validations were none better than those before."""
        aucs = [row["validation_auc"] for row in self.history]
        return bool(patience and aucs) and len(aucs) - 1 - aucs.index(max(aucs)) >= patience

    def random_states(self) -> dict[str, tuple[Callable, Callable]]:
        """Getter and setter of every random generator in use."""
        states = {"generator": (self.generator.get_state, self.generator.set_state)}
        states |= {"torch": (torch.get_rng_state, torch.set_rng_state)}
        if self.device.type != "cpu":  # dropout draws on the device
            module = getattr(torch, self.device.type)
            states["device"] = (module.get_rng_state, module.set_rng_state)
        return states

    def save(self, path: Path, key: str) -> None:
        """Write all of it to one safetensors file, whole or not at all; key: what it belongs to."""
        start, state = time.monotonic(), self.optimizer.state
        groups = {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": {f"{n}/{k}": t for n, p in self.model.named_parameters() for k, t in state[p].items()},
            "random": {name: get() for name, (get, _) in self.random_states().items()},
        }
        tensors = {f"{group}/{n}": t.cpu().contiguous() for group, of in groups.items() for n, t in of.items()}
        training = json.dumps({"key": key, "epoch": self.epoch, "history": self.history})
        header = {"training": training, "sha256": _digest(training, tensors)}
        try:
            with whole(path) as part:
                save_file(tensors, part, header)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error}); make room and run the stage again") from error
        end = time.monotonic()
        self.due = end + max(_CHECKPOINT_S, (end - start) / _CHECKPOINT_SHARE)

    def resume(self, path: Path, key: str) -> None:
        """Continue from the file if there is one and it has this key; else nothing happens."""
        header, tensors = _read_checkpoint(path) if path.is_file() else ({"key": None}, {})
        if header["key"] != key:
            return
        self.epoch, self.history, self.best = header["epoch"], header["history"], _under("best", tensors)
        self.model.load_state_dict(_under("model", tensors))
        self.resume_optimizer(_under("optimizer", tensors))
        for name, (_, put) in self.random_states().items():
            put(tensors[f"random/{name}"])

    def resume_optimizer(self, tensors: dict[str, torch.Tensor]) -> None:
        """AdamW's moments, in the memory format of their parameters: the fused kernel walks them side by side."""
        states = {}
        for number, (name, parameter) in enumerate(self.model.named_parameters()):
            states[number] = _under(name, tensors)
            for moment in ("exp_avg", "exp_avg_sq"):
                like = torch.empty_like(parameter, requires_grad=False)
                states[number][moment] = like.copy_(states[number][moment])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})


def _under(group, tensors):
    """The tensors whose names begin with `group/`, without it."""
    return {name.removeprefix(f"{group}/"): t for name, t in tensors.items() if name.startswith(f"{group}/")}


def _read_checkpoint(path):
    """What `Training.save` wrote: header and tensors."""
    with reading(path, "an undamaged checkpoint", "delete it to start anew"), safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        if header["sha256"] != _digest(header["training"], tensors):
            raise ValueError("its SHA-256 is another than it says")
        return json.loads(header["training"]), tensors


def _digest(text, tensors):
    """SHA-256 of a text and tensors by name."""
    each = [(n, t.dtype, t.shape, hashlib.sha256(np.ascontiguousarray(t)).digest()) for n, t in tensors.items()]
    return hashlib.sha256(f"{text} {sorted(each)}".encode()).hexdigest()


def _training_key(model, parts, config, seed, version):
    """SHA-256 of all that a training depends on: data, untrained network, configuration, versions."""
    device = parts[0].images.device.type
    sha = hashlib.sha256(repr((config, seed, version, torch.__version__, device, str(model))).encode())
    for data in parts:
        sha.update("\0".join(data.patient).encode())
        sha.update(np.ascontiguousarray(data.label))
        sha.update(np.ascontiguousarray(data.images.cpu()))
    return _digest(sha.hexdigest(), {name: tensor.cpu() for name, tensor in model.state_dict().items()})


def begin(build: Callable[[], torch.nn.Module], device: torch.device, config: TrainConfig, seed: int) -> Training:
    """A training before its first step; build: () → model, called after seeding."""
    generator = seed_everything(seed, config)
    model = build().to(device, memory_format=torch.channels_last)  # faster convolutions, on the CPU too
    network = model
    if config.compile:  # from scratch: past a few trainings the compiler would give up and leave them uncompiled
        torch.compiler.reset()
        network = torch.compile(model, dynamic=False)
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return Training(model, network, optimizer, generator, device)


def mixed_precision(device: torch.device, config: TrainConfig) -> torch.autocast:
    """The context of a training step's forward pass: bfloat16 where the card computes in it."""
    half = device.type == "cuda" and config.precision == "auto" and torch.cuda.is_bf16_supported(False)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def train_one_epoch(training: Training, data: Slices, config: TrainConfig) -> float:
    """One pass over the patients of `data`.  Returns the mean loss.

    A loss that is not finite is an error after the pass: a look at every step would make a GPU wait.
    """
    batches = epoch_batches(data, config.batch_size, training.generator)
    sizes, device = [len(rows) for rows in batches], training.device
    # drawn for all batches and copied to the device at once
    maps = torch.cat([draw_augmentation(n, config.augment, training.generator) for n in sizes]).to(device)
    rates = _learning_rates(training.epoch, len(batches), config)
    target = torch.as_tensor(data.label, dtype=torch.float32, device=device)
    weight, losses = _positive_weight(data, config).to(device), []
    training.network.train()
    for rows, moved, rate in zip(torch.cat(batches).to(device).split(sizes), maps.split(sizes), rates, strict=True):
        training.optimizer.param_groups[0]["lr"] = rate
        images = augment(data.images[rows], moved)
        with mixed_precision(device, config):
            logits = training.network(images)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), target[rows], pos_weight=weight)
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.gradient_clip)
        training.optimizer.step()
        losses.append(loss.detach())
    training.epoch += 1
    return _finite_mean(torch.stack(losses).cpu(), data, batches)


def _finite_mean(losses, data, batches):
    """Mean of the batches' losses; ValueError with the patients of the first batch whose loss is not finite."""
    if not losses.isfinite().all():
        number = int((~losses.isfinite()).nonzero()[0])
        culprits = data.patient[batches[number].tolist()].tolist()
        raise ValueError(f"loss is {losses[number].item()} in batch {number} of patients {culprits}")
    return losses.mean().item()


@torch.inference_mode()
def predict_slices(model: torch.nn.Module, images: torch.Tensor, batch_size: int = 128) -> np.ndarray:
    """HER2 probability of each slice, `(N,)` float64; images `(N, P, H, W)` uint8."""
    model.eval()
    parts = [model(part.float() / 255).sigmoid() for part in images.split(batch_size)]
    return torch.cat(parts).cpu().double().numpy()


def predict(
    model: torch.nn.Module, data: Slices, aggregate: str = "median"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One probability per patient: patients `(n,)`, labels `(n,)` and probabilities `(n,)`."""
    first, count = data.patients()
    parts = np.split(predict_slices(model, data.images), first[1:])
    return data.patient[first], data.label[first], np.array([AGGREGATE[aggregate](p) for p in parts])


def _validate(training, validation, config, seed, loss):
    """Look at the validation patients, keep the weights if they are the best so far, and note it."""
    _, labels, probabilities = predict(training.model, validation, config.aggregate)
    auc = float(roc_auc_score(labels, probabilities))
    # a later epoch of equal AUC has seen a smaller learning rate
    if auc >= max((row["validation_auc"] for row in training.history), default=0.0):
        training.best = copy.deepcopy(training.model.state_dict())
    training.history.append({"seed": seed, "epoch": training.epoch, "loss": loss, "validation_auc": auc})


def fit(
    build: Callable[[], torch.nn.Module],
    train: Slices,
    validation: Slices,
    config: TrainConfig,
    seed: int,
    progress: Callable = iter,
    checkpoint: Path | None = None,
    version: str = "",
) -> tuple[torch.nn.Module, list[dict]]:
    """Train one seed.

    build: () → model, called after seeding.  train, validation: `Slices`.  progress: wraps the epochs (tqdm).
    checkpoint: a file, written at the end and at validations when it is due.  A training that was killed continues
    from it, to the byte; one that had ended returns at once.  The file is the caller's to delete when all is safe.
    version: what else the result depends on, such as a digest of the code.  A checkpoint of other data, another
    network, configuration or version is overwritten by a training that starts anew.
    Returns the model with the weights of its best validation, and `Training.history`.
    """
    if len(set(validation.label)) < 2:
        raise ValueError(f"all {len(validation.patients()[0])} validation patients are of one class: no AUC")
    training = begin(build, train.images.device, config, seed)
    if checkpoint:
        key = _training_key(training.model, (train, validation), config, seed, version)
        training.resume(checkpoint, key)
    bar = progress(range(training.epoch + 1, config.epochs + 1))
    for epoch in bar:
        if training.exhausted(config.patience):
            break
        loss = train_one_epoch(training, train, config)
        if epoch % config.validate_every and epoch != config.epochs:
            continue
        _validate(training, validation, config, seed, loss)
        if hasattr(bar, "set_postfix"):
            bar.set_postfix(loss=f"{loss:.3f}", validation_auc=f"{training.history[-1]['validation_auc']:.3f}")
        ended = epoch == config.epochs or training.exhausted(config.patience)
        if checkpoint and (ended or time.monotonic() >= training.due):
            training.save(checkpoint, key)
    training.model.load_state_dict(training.best)
    return training.model, training.history
