"""Digests of small pieces, for comparing machines: run it on both, and diff the two outputs.

    python benchmarks/digests.py [GROUP ...] > here.txt

Groups: libm numpy blas scipy phantom torch networks study; all of them without a word.
HER2_PINS=off shows what the instructions of this processor give.  A processor can also be played, slowly:
`qemu-x86_64 -cpu Haswell .venv/bin/python benchmarks/digests.py numpy blas`.
"""

import her2core  # noqa: I001 - first: it pins the instructions of numpy and torch
import hashlib
import math
import platform
import sys
from functools import partial

import numpy as np

from machine import digest, piece_digests, step_digests

N = 20_011
RNG = np.random.default_rng(0)
UNIT = RNG.integers(1, 1 << 52, N) / (1 << 52)  # exact, so the same everywhere
WIDE = UNIT * 40 - 20
SQUARE = UNIT[: 130 * 130].reshape(130, 130) - 0.5
ORDER = np.random.default_rng(2).permutation(N)
VOLUME = (UNIT[: 12 * 40 * 40] * 1000).astype(np.float32).reshape(12, 40, 40)


def libm_pieces():
    for name in ("exp", "log", "sin", "cos", "tan", "atan", "tanh", "expm1", "log1p", "erf", "gamma"):
        yield name, lambda name=name: np.array([getattr(math, name)(x) for x in UNIT[:4000].tolist()])
    yield "pow", lambda: np.array([math.pow(x, y) for x, y in zip(UNIT[:4000], WIDE[:4000], strict=True)])


def numpy_pieces():
    for kind in (np.float64, np.float32):
        unit, wide = UNIT.astype(kind), WIDE.astype(kind)
        for name in ("exp", "expm1", "sin", "cos", "tan", "arctan", "tanh", "sinh", "cbrt"):
            yield f"{name} {kind.__name__}", partial(getattr(np, name), wide)
        for name in ("log", "log1p", "log2", "log10", "sqrt", "arcsin", "arccos", "arctanh"):
            yield f"{name} {kind.__name__}", partial(getattr(np, name), unit)
        yield f"power {kind.__name__}", partial(np.power, unit, wide / 4)
        yield f"arctan2 {kind.__name__}", partial(np.arctan2, unit, wide)
        for name in ("sum", "mean", "std", "cumsum", "median"):
            yield f"{name} {kind.__name__}", partial(getattr(np, name), wide)
    for name in ("standard_normal", "random", "standard_exponential"):
        yield name, lambda name=name: getattr(np.random.default_rng(1), name)(N)
    yield "gamma and permutation", lambda: np.random.default_rng(1).gamma(0.7, size=N) + ORDER
    yield "quantile", lambda: np.quantile(WIDE, [0.02, 0.5, 0.98])
    yield "interp", lambda: np.interp(WIDE, np.sort(UNIT[:50]) * 40 - 20, UNIT[:50])
    yield "corrcoef", lambda: np.corrcoef(UNIT, WIDE**2)


def blas_pieces():
    symmetric = SQUARE @ np.eye(130) + SQUARE.T
    for kind in (np.float64, np.float32):
        a = SQUARE.astype(kind)
        yield f"matmul {kind.__name__}", lambda a=a: a @ a.T
        yield f"matrix times vector {kind.__name__}", lambda a=a: a @ a[0]
        yield f"dot {kind.__name__}", lambda a=a: np.array(a.ravel() @ a.T.ravel())
        yield f"solve {kind.__name__}", lambda a=a: np.linalg.solve(a, a[:, :3])
        yield f"lstsq {kind.__name__}", lambda a=a: np.linalg.lstsq(a[:, :9], a[:, 9], rcond=None)[0]
    yield "tensordot", lambda: np.tensordot(VOLUME, VOLUME[0], axes=(1, 0))
    yield "svd", lambda: np.linalg.svd(SQUARE)[1]
    yield "eigh", lambda: np.linalg.eigh(symmetric)[0]
    yield "inv", lambda: np.linalg.inv(SQUARE)


def scipy_pieces():
    from scipy import ndimage, optimize, special, stats

    yield "gaussian_filter", lambda: ndimage.gaussian_filter(VOLUME, 1.3)
    yield "map_coordinates", lambda: ndimage.map_coordinates(VOLUME, np.full((3, 99), 3.3) + UNIT[:99])
    yield "zoom", lambda: ndimage.zoom(VOLUME, 1.7, order=1)
    yield "distance_transform", lambda: ndimage.distance_transform_edt(VOLUME > 300, (2.5, 1.4, 1.4))
    yield "expit", lambda: special.expit(WIDE)
    yield "norm.ppf", lambda: stats.norm.ppf(UNIT)
    yield "norm.cdf", lambda: stats.norm.cdf(WIDE)
    yield "t.ppf and beta.ppf", lambda: np.array([stats.t.ppf(UNIT[:99], 9), stats.beta.ppf(UNIT[:99], 3, 8)])
    yield "minimize L-BFGS", lambda: optimize.minimize(lambda w: np.exp(SQUARE[:, :5] @ w).sum(), np.zeros(5)).x


def phantom_pieces():
    from dataclasses import replace

    from her2core.phantom.patient import make_patient
    from her2core.phantom.sites import SITES, draw_protocol

    for name in SITES:
        for seed in (1, 2):
            drawn = draw_protocol(name, seed)
            yield f"protocol {name} {seed}", lambda drawn=drawn: np.array(repr(drawn))
            site = replace(drawn, shape=(10, 56, 56), spacing_mm=(6.0, 3.2, 3.2))
            patient = make_patient(seed, seed % 2, site)
            yield f"anatomy {name} {seed}", lambda p=patient: p.fibroglandular
            yield f"field {name} {seed}", lambda p=patient: p.bias_field
            yield f"masks {name} {seed}", lambda p=patient: np.stack([p.lesion_mask, p.annotator_mask])
            yield f"images {name} {seed}", lambda p=patient: p.series.array
            yield f"truth {name} {seed}", lambda p=patient: np.array(repr(p.truth))


def torch_pieces():
    import torch
    from torch.nn import functional as f

    torch.manual_seed(0)
    unit, wide = torch.from_numpy(UNIT).float(), torch.from_numpy(WIDE).float()
    for name in ("exp", "sin", "cos", "tanh", "sigmoid", "erf", "deg2rad", "relu", "sum", "mean", "std", "cumsum"):
        yield name, lambda name=name: getattr(torch, name)(*((wide,) if name != "cumsum" else (wide, 0)))
    for name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal", "logit"):
        yield name, lambda name=name: getattr(torch, name)(unit)
    for name in ("gelu", "silu", "softplus"):
        yield name, lambda name=name: getattr(f, name)(wide)
    yield "norm", lambda: torch.linalg.vector_norm(wide)
    yield "randn", lambda: torch.randn(N, generator=torch.Generator().manual_seed(0))
    yield "randn, few", lambda: torch.randn(9, generator=torch.Generator().manual_seed(0))
    matrix = wide[: 96 * 200].reshape(96, 200)
    yield "softmax", lambda: matrix.softmax(1)
    yield "layer_norm", lambda: f.layer_norm(matrix, (200,))
    yield "matmul", lambda: matrix @ matrix.T
    yield "bmm", lambda: torch.bmm(matrix.reshape(4, 24, 200), matrix.reshape(4, 200, 24))
    yield "attention", lambda: f.scaled_dot_product_attention(*[matrix.reshape(4, 24, 200)] * 3)
    images = unit[: 8 * 3 * 24 * 24].reshape(8, 3, 24, 24)
    maps = (unit[:48] - 0.5).reshape(8, 2, 3)
    yield "affine_grid", lambda: f.affine_grid(maps, [8, 3, 24, 24], align_corners=False)
    grid = unit[: 8 * 24 * 24 * 2].reshape(8, 24, 24, 2) * 2 - 1
    yield "grid_sample", lambda: f.grid_sample(images, grid, padding_mode="border", align_corners=False)
    for layer, last in ((torch.nn.Conv2d(3, 16, 7, 2, 3), False), (torch.nn.Conv2d(3, 16, 3, 1, 1), True)):
        name = f"conv {layer.kernel_size[0]}, {'channels last' if last else 'contiguous'}"
        yield f"{name}", lambda a=layer, b=last: through(a, images, b)
    yield "batch_norm", lambda: through(torch.nn.BatchNorm2d(3), images)
    yield "max_pool", lambda: through(torch.nn.MaxPool2d(3, 2, 1), images)
    yield "linear", lambda: through(torch.nn.Linear(24, 17), images)
    for fused in (False, True):
        yield f"AdamW, fused {fused}", lambda fused=fused: adamw(wide[:999], unit[:999], fused)


def through(layer, x, channels_last=False):
    """Output, and gradients by input and parameters."""
    import torch

    if channels_last:
        x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * out).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


def adamw(start, gradient, fused):
    import torch

    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], lr=2e-3, weight_decay=0.05, fused=fused)
    for _ in range(3):
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def network_pieces():
    from her2core.baselines import CvtConfig, ModelConfig, VitConfig, build_model
    from her2core.model import ThdaConfig

    tiny_vit = VitConfig(patch_px=6, dim=64, depth=2, heads=4, mlp_dim=128)
    tiny_cvt = CvtConfig((5, 3, 3), (3, 2, 2), (16, 48, 96), (1, 3, 6), (1, 2, 3), 0.0)
    config = ModelConfig(ThdaConfig(width=16, dropout=0.1), tiny_vit, tiny_cvt)
    for name in ("thda", "resnet34_rgb", "vit", "cvt"):
        for piece, value in step_digests(partial(build_model, name, config, 48)).items():
            yield f"{name} {piece}", value


GROUPS = {
    "libm": libm_pieces,
    "numpy": numpy_pieces,
    "blas": blas_pieces,
    "scipy": scipy_pieces,
    "phantom": phantom_pieces,
    "torch": torch_pieces,
    "networks": network_pieces,
    "study": lambda: piece_digests().items(),
}


def as_digest(made):
    """The first digits of a digest, of an array or several, or of one that is there."""
    if isinstance(made, str):
        return made[:16]
    parts = made if isinstance(made, list) else [made]
    arrays = [np.asarray(part) for part in parts]
    if arrays[0].dtype.kind == "U":
        return hashlib.sha256(str(arrays[0]).encode()).hexdigest()[:16]
    return digest(*arrays)[:16]


def main(wanted):
    print(f"{platform.processor() or platform.machine()}, instructions: {her2core.INSTRUCTIONS}", file=sys.stderr)
    for group in wanted or GROUPS:
        for name, make in GROUPS[group]():
            print(f"{group:9s} {name:34s} {as_digest(make() if callable(make) else make)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
