"""The lesions: a main focus and its satellites, their shapes, places and kinetics."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from her2core.phantom.anatomy import Anatomy, Grid, smooth_field, smoothstep
from her2core.phantom.sites import random_stream
from her2core.phantom.truth import Truth


@dataclass(frozen=True)
class Lesions:
    """All foci on the full grid (Z, Y, X): fraction, Ktrans per min and relative proton density, float32.

    labels: uint8, 1 for the main lesion and 2.. for satellites.  count: of the foci, however small on the grid.
    """

    fraction: np.ndarray
    ktrans_per_min: np.ndarray
    water: np.ndarray
    labels: np.ndarray
    count: int


def _star_radius(direction, radius_mm, lobulation, n_spikes, rng):
    """Relative radius over unit vectors (z, y, lateral): a random star-shaped solid with optional spicules.

    Plane waves on the sphere stand for a Gaussian random sphere (de Sisternes 2015, the mass of VICTRE).
    """
    radius = np.ones_like(direction[0])
    for k in range(9):
        wave = rng.standard_normal(3).astype(np.float32) * np.float32(1.2 + 0.35 * k)
        phase = sum(w * n for w, n in zip(wave, direction, strict=True)) + np.float32(rng.uniform(0, 2 * np.pi))
        radius += np.float32(0.45 * lobulation / (1 + 0.12 * k)) * np.cos(phase)
    for _ in range(n_spikes):  # spicules keep their width of 1-2 mm whatever the size of the lesion
        axis = rng.standard_normal(3) * (0.6, 1, 1)
        axis = (axis / np.linalg.norm(axis)).astype(np.float32)
        along = sum(a * n for a, n in zip(axis, direction, strict=True))
        sharpness = np.float32(rng.uniform(0.7, 1.7) * max(radius_mm, 8) ** 2)
        length = np.float32(rng.uniform(0.3, 0.9) * min(1, 12 / radius_mm))
        radius += length * np.exp(sharpness * (along - 1))
    return np.maximum(radius, 0.35)


def _make_focus(grid, centre_mm, radius_mm, rng, *, lobulation, spiculations=0, non_mass=False):
    """A mass, or a stretched and clumped non-mass enhancement, about a (z, y, lateral) centre.

    → its box, and in it fraction, relative depth (0 at the edge, 1 in the centre) and log Ktrans texture.
    """
    stretch = np.array((0.85, 1.7, 1.13) if non_mass else (0.92, 1.1, 1.0)) * np.exp(rng.normal(0, 0.06, 3))
    reach = radius_mm * stretch.max() * (1.35 + 2 * lobulation + 0.4 * (spiculations > 0)) + 4
    near = [np.flatnonzero(np.abs(a - c) <= reach) for a, c in zip(grid.axes, centre_mm, strict=True)]
    box = tuple(slice(n[0], n[-1] + 1) for n in near)
    axes = [axis[s] for axis, s in zip(grid.axes, box, strict=True)]
    relative = [(a - np.float32(c)) / np.float32(f) for a, c, f in zip(axes, centre_mm, stretch, strict=True)]
    offset = np.meshgrid(*relative, indexing="ij", sparse=True)
    distance = np.sqrt(sum(o**2 for o in offset)) + np.float32(1e-3)
    direction = [o / distance for o in offset]
    rho = distance / (np.float32(radius_mm) * _star_radius(direction, radius_mm, lobulation, spiculations, rng))
    clumps, grain = smooth_field(axes, 2.6, rng), smooth_field(axes, 1.5, rng)
    rho = rho * (1 + 0.05 * clumps + 0.02 * grain)  # a margin that is nowhere quite smooth
    if non_mass:  # clumps with normal tissue between them
        rho = rho * (1 + smoothstep(smooth_field(axes, 3.2, rng), -0.2, 0.9))
    edge = np.float32(0.75 * grid.spacing_mm[1] / radius_mm)
    return box, 1 - smoothstep(rho, 1 - edge, 1 + edge), np.clip(1 - rho, 0, 1), 0.8 * clumps + 0.6 * grain


def _place_main(grid, anatomy, radius_mm, rng):
    """Centre (z, y, lateral) mm of the main lesion: in gland where possible, with room on all sides."""
    room = np.minimum(anatomy.skin_depth_mm, -anatomy.wall_depth_mm)[:, ::2, ::2]
    slab = float(grid.z.max()) + grid.spacing_mm[0] / 2
    fits = (room > 0.85 * radius_mm + 4) & (np.abs(grid.z) < max(slab - 0.95 * radius_mm, grid.spacing_mm[0]))
    if not fits.any():
        fits = room >= room[np.broadcast_to(np.abs(grid.z) < slab / 3, room.shape)].max() - 1
    weight = np.cumsum((fits * (anatomy.gland[:, ::2, ::2] + 0.06)).ravel(), dtype=np.float64)
    pick = min(int(np.searchsorted(weight, rng.random() * weight[-1], side="right")), weight.size - 1)
    z, y, x = np.unravel_index(pick, room.shape)
    return np.array([a[i] for a, i in zip(grid.axes, (z, 2 * y, 2 * x), strict=True)], float)


def _place_satellite(grid, anatomy, centre_mm, main_radius_mm, radius_mm, taken, rng):
    """A free place near the main lesion and inside the breast, or None after 20 tries."""
    for _ in range(20):
        way = rng.standard_normal(3) * (0.55, 1, 1)
        gap = main_radius_mm * 1.2 + radius_mm + rng.uniform(4, 18)
        point = centre_mm + way / np.linalg.norm(way) * gap
        k = grid.index(point)
        free = all(np.linalg.norm(point - other) > radius_mm + size + 3 for other, size in taken)
        inside = np.abs(point[0]) < grid.z.max() and np.abs(point[2]) < np.abs(grid.lateral).max()
        if free and inside and min(anatomy.skin_depth_mm[k], -anatomy.wall_depth_mm[k]) > radius_mm + 2:
            return point
    return None


def _make_foci(grid, anatomy, truth, seed):
    """Main lesion and satellites; every focus has its own stream, so a twin's main lesion keeps its shape."""
    rng = random_stream(seed, "lesion", 0)
    centre = _place_main(grid, anatomy, truth.radius_mm, rng)
    shape = {name: getattr(truth, name) for name in ("lobulation", "spiculations", "non_mass")}
    foci = [_make_focus(grid, centre, truth.radius_mm, rng, **shape)]
    taken = []
    for i in range(truth.n_satellites):
        rng = random_stream(seed, "lesion", i + 1)
        radius = rng.uniform(3.0, 6.0)
        point = _place_satellite(grid, anatomy, centre, truth.radius_mm, radius, taken, rng)
        if point is not None:
            foci.append(_make_focus(grid, point, radius, rng, lobulation=0.2))
            taken.append((point, radius))
    return foci


def make_lesions(grid: Grid, anatomy: Anatomy, truth: Truth, seed: int) -> Lesions:
    """The foci of a patient, as many satellites as find a place; where two meet, the larger fraction wins."""
    foci = _make_foci(grid, anatomy, truth, seed)
    fraction, ktrans, water = [np.full(grid.shape, v, np.float32) for v in (0, 0, 1)]
    labels = np.zeros(grid.shape, np.uint8)
    allowed = anatomy.body * (1 - anatomy.skin) * (1 - smoothstep(anatomy.wall_depth_mm, -1, 1))
    for number, (box, share, depth, texture) in enumerate(foci, 1):
        inside = share * allowed[box]
        # spicules thinner than a voxel end two voxels beyond the mask: twins differ up to there and no further
        inside = inside * ndimage.binary_dilation(inside > 0.5, iterations=2)
        outgrown = 0.5 if number > 1 else 0.2 if truth.non_mass else 1.0  # small or loose tissue stays supplied
        rim = truth.rim * outgrown
        core = smoothstep(depth, 0.18, 0.55)
        log_rate = truth.heterogeneity * texture - truth.heterogeneity**2 / 2
        rate = truth.ktrans_per_min * np.exp(log_rate) * (1 - rim * core) * (1 + 0.25 * rim)
        wins = inside > fraction[box]
        ktrans[box] = np.where(wins, np.clip(rate, 0.005, 1.8), ktrans[box])
        water[box] = np.where(wins, 1 + 0.04 * texture - 0.08 * rim * core, water[box])
        labels[box] = np.where(wins & (inside > 0.5), number, labels[box])
        fraction[box] = np.maximum(inside, fraction[box])
    return Lesions(fraction, ktrans, water, labels, len(foci))
