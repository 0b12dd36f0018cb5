"""The training loop, plain and visible.  It knows tensors and models, no file format.

Every choice here is unpublished in the paper and therefore a field of `TrainConfig`.  The checkpoint that
counts is chosen on validation patients; the test split is not seen.
"""

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from her2core.dataset import AugmentConfig, augment, draw_augmentation, epoch_batches

AGGREGATE = {"median": np.median, "mean": np.mean, "max": np.max}


@dataclass(frozen=True)
class TrainConfig:
    """seeds: one training each.  epochs: passes over the training patients, one slice per patient and pass.
    lr: peak of AdamW's learning rate after `warmup` (fraction of all steps), then cosine to zero; lr_of: the
        peak for models that need another.
    class_weight: "balanced" weighs HER2+ by negatives / positives in the loss, "none" leaves it.
    validate_every: epochs between looks at the validation patients; the best look is kept.
    aggregate: slice probabilities → patient: median, mean or max.
    device: "auto", "cpu", "cuda" or "mps".  threads: CPU threads per training (1 and 2 give other bits).
    jobs: trainings side by side on a CPU, -1 for one per core; a GPU trains one after the other.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 40
    batch_size: int = 32
    lr: float = 2e-3
    lr_of: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.05
    warmup: float = 0.1
    gradient_clip: float = 1.0
    class_weight: str = "balanced"
    validate_every: int = 4
    aggregate: str = "median"
    device: str = "auto"
    threads: int = 1
    jobs: int = -1
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        if self.class_weight not in ("balanced", "none"):
            raise ValueError(f"class_weight={self.class_weight!r}: expected balanced or none")
        if self.aggregate not in AGGREGATE:
            raise ValueError(f"aggregate={self.aggregate!r}: expected one of {', '.join(AGGREGATE)}")
        if not self.seeds or self.epochs < 1 or self.validate_every < 1:
            raise ValueError(f"training needs a seed, an epoch and a validation, found {self}")


def choose_device(name):
    """ "auto" → CUDA, else Apple's MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def seed_everything(seed, threads):
    """Same seed, same thread count, same machine kind: same bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    return torch.Generator().manual_seed(seed)


def learning_rate(step, steps, config):
    """Share of the peak: a linear warm-up, then a cosine down to zero."""
    warm = max(round(config.warmup * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def positive_weight(data, config):
    """Weight of HER2-positives in the loss: negatives / positives over the training patients."""
    if config.class_weight == "none":
        return torch.tensor(1.0)
    labels = data.her2[data.patients()[0]]
    positives = int(labels.sum())
    if positives in (0, labels.size):
        raise ValueError(f"{positives} of {labels.size} training patients are HER2-positive: nothing to learn")
    return torch.tensor((labels.size - positives) / positives)


def train_one_epoch(model, data, batches, optimizer, schedule, weight, config, generator):
    """One pass over `batches` (tensors of row numbers).  Returns the mean loss; stops on one that is not finite."""
    model.train()
    device, losses = data.images.device, []
    target = torch.as_tensor(data.her2, dtype=torch.float32, device=device)
    for number, rows in enumerate(batches):
        maps = draw_augmentation(len(rows), config.augment, generator).to(device)
        rows = rows.to(device)
        logits = model(augment(data.images[rows], maps))
        loss = functional.binary_cross_entropy_with_logits(logits, target[rows], pos_weight=weight)
        if not torch.isfinite(loss):
            culprits = data.patient[rows.tolist()].tolist()
            raise ValueError(f"loss is {loss.item()} in batch {number} of patients {culprits}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.inference_mode()
def predict_slices(model, images, batch_size=128):
    """HER2 probability of each slice, `(N,)` float64; images `(N, P, H, W)` uint8."""
    model.eval()
    parts = [model(part.float() / 255).sigmoid().cpu() for part in images.split(batch_size)]
    return torch.cat(parts).double().numpy()


def predict(model, data, aggregate="median"):
    """One probability per patient: patients `(n,)`, labels `(n,)` and probabilities `(n,)`."""
    first, count = data.patients()
    parts = np.split(predict_slices(model, data.images), first[1:])
    return data.patient[first], data.her2[first], np.array([AGGREGATE[aggregate](p) for p in parts])


def fit(build, train, validation, config, seed, progress=iter):
    """Train one seed.

    build: () → model, called after seeding.  train, validation: `Slices`.  progress: wraps the epochs (tqdm).
    Returns the model with the weights of its best validation, and the history: one dict per validation with
    epoch, loss, validation_auc.
    """
    generator = seed_everything(seed, config.threads)
    device = train.images.device
    model = build().to(device, memory_format=torch.channels_last)  # faster convolutions, on the CPU too
    weight = positive_weight(train, config).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda")
    )
    steps = config.epochs * max(len(train.patients()[0]) // config.batch_size, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: learning_rate(s, steps, config))
    history, best = [], (-1.0, None)
    bar = progress(range(1, config.epochs + 1))
    for epoch in bar:
        batches = epoch_batches(train, config.batch_size, generator)
        loss = train_one_epoch(model, train, batches, optimizer, schedule, weight, config, generator)
        if epoch % config.validate_every and epoch != config.epochs:
            continue
        _, labels, probabilities = predict(model, validation, config.aggregate)
        auc = float(roc_auc_score(labels, probabilities))
        history.append({"seed": seed, "epoch": epoch, "loss": loss, "validation_auc": auc})
        if hasattr(bar, "set_postfix"):
            bar.set_postfix(loss=f"{loss:.3f}", validation_auc=f"{auc:.3f}")
        if auc >= best[0]:  # a later epoch of equal AUC has seen a smaller learning rate
            best = auc, copy.deepcopy(model.state_dict())
    model.load_state_dict(best[1])
    return model, history
