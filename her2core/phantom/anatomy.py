"""The breast without its lesions: smooth random fields, surfaces and the tissues between them, in millimetres."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from her2core.phantom.sites import Site
from her2core.phantom.truth import Truth


@dataclass(frozen=True)
class Grid:
    """Voxel centres in mm, each axis shaped to broadcast over (Z, Y, X).

    z from the middle, y from the front edge, lateral from the middle along x towards the arm.
    """

    z: np.ndarray
    y: np.ndarray
    lateral: np.ndarray
    spacing_mm: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.z.size, self.y.size, self.lateral.size

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z, y and lateral, each as one dimension."""
        return self.z.ravel(), self.y.ravel(), self.lateral.ravel()

    @property
    def depth_mm(self) -> float:
        return self.y.size * self.spacing_mm[1]

    def index(self, point_mm: Sequence[float]) -> tuple[int, int, int]:
        """The voxel nearest to a (z, y, lateral) point, which may lie outside the grid."""
        return tuple(int(np.abs(a - p).argmin()) for a, p in zip(self.axes, point_mm, strict=True))


def make_grid(site: Site, side: str) -> Grid:
    """The grid of a site's volume about a breast of this side, "left" or "right"."""
    axes = zip(site.shape, site.spacing_mm, strict=True)
    z, y, x = [np.arange(n, dtype=np.float32) * np.float32(d) for n, d in axes]
    z, x = z - z.mean(), x - x.mean()
    lateral = x if side == "left" else -x
    return Grid(z[:, None, None], y[None, :, None], lateral[None, None, :], site.spacing_mm)


def _bumps(axis_mm, sigma_mm):
    """Gaussian bumps (voxels, nodes) on a lattice anchored in mm, so that grids of any spacing agree."""
    step = 1.25 * sigma_mm
    first, last = np.floor(axis_mm.min() / step) - 3, np.ceil(axis_mm.max() / step) + 3
    nodes = np.arange(first, last + 1, dtype=np.float32) * np.float32(step)
    return np.exp(-(((axis_mm[:, None] - nodes) / np.float32(sigma_mm)) ** 2) / 2)


def smooth_field(axes_mm: Sequence[np.ndarray], sigma_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random field over the product of `axes_mm`, unit variance, correlation about 2 sigma_mm.

    White noise on a lattice times separable bumps: three small matrix products instead of a filter.
    """
    bumps = [_bumps(np.ravel(axis), sigma_mm) for axis in axes_mm]
    field = rng.standard_normal([b.shape[1] for b in bumps], dtype=np.float32)
    for b in bumps:  # each product consumes the first axis and appends the finished one
        field = np.tensordot(field, b, axes=(0, 1))
    scale = np.prod([np.mean(np.sum(b * b, axis=1)) for b in bumps])
    return field / np.float32(np.sqrt(scale))


def smoothstep(x: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """From 0 at `low` to 1 at `high`, with slope 0 at both ends; constant beyond."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Fields:
    """Three scales of random texture (Z, Y, X), unit variance, shared by all tissues: 7.5, 3.2 and 1.6 mm."""

    coarse: np.ndarray
    medium: np.ndarray
    fine: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """The breast without its lesions; (Z, Y, X) float32.  What the tissue fractions leave of `body` is fat.

    skin_depth_mm: along the surface normal, from the skin inwards.  wall_depth_mm: along y, behind the front of
    the pectoral muscle.
    """

    body: np.ndarray
    skin: np.ndarray
    gland: np.ndarray
    ligament: np.ndarray
    muscle: np.ndarray
    vessel: np.ndarray
    node: np.ndarray
    lung: np.ndarray
    skin_depth_mm: np.ndarray
    wall_depth_mm: np.ndarray
    fields: Fields


def _surfaces(grid, rng):
    """Skin, chest wall (depths y in mm) and nipple bump over (Z, 1, X); nipple (z, y, lateral); half-width."""
    z, lat, depth = grid.z, grid.lateral, grid.depth_mm
    ripple = [smooth_field((z, lat), s, rng)[:, None, :] for s in (9.0, 8.0, 6.0)]
    base = depth * rng.uniform(0.68, 0.72)
    wall = base + 0.0026 * (lat + 30) ** 2 + 0.0016 * z**2 + 1.5 * ripple[0]
    width, tall = rng.uniform(58, 70), rng.uniform(78, 100)
    height = rng.uniform(0.60, 0.90) * base
    lat0, z0, power = rng.uniform(-4, 9), rng.uniform(-6, 6), rng.uniform(1.9, 2.5)
    dome = 1 - (np.hypot((lat - lat0) / width, (z - z0) / tall) + 1e-4) ** power
    breast = base + 0.0016 * z**2 - height * np.sign(dome) * np.abs(dome) ** 0.62 + 0.8 * ripple[1]
    beside = wall - rng.uniform(11, 18) + 1.0 * ripple[2]
    skin = np.minimum(breast, beside) - 5 * np.log1p(np.exp(-np.abs(breast - beside) / 5))  # smooth minimum
    bump = np.exp(-(((lat - lat0) / 4.2) ** 2 + ((z - z0) / 4.2) ** 2))
    nipple = (z0, float(base - height), lat0)
    return (skin - 6 * bump).astype(np.float32), wall.astype(np.float32), bump, nipple, width


def _gland_tissue(grid, skin_depth, wall_depth, fields, nipple, density, rng):
    """Fibroglandular fraction: lobes that run to the nipple between fat, kept off the skin and the wall."""
    coarse, medium, fine = fields.coarse, fields.medium, fields.fine
    dz, dy, dlat = grid.z - nipple[0], grid.y - nipple[1] - 6, grid.lateral - nipple[2]
    radius = np.sqrt(dz**2 + dy**2 + dlat**2) + 1
    angle = np.arctan2(dlat + 5 * coarse, dy + 14 + 5 * medium)
    ducts = np.cos(angle * rng.uniform(12, 18) + 1.7 * coarse + medium + 0.12 * dz)
    ducts += 0.6 * np.cos(angle * rng.uniform(26, 36) + 1.5 * medium - 0.2 * dz)
    envelope = smoothstep(skin_depth, 4, np.maximum(14 + 5 * coarse, 7))
    envelope *= smoothstep(-wall_depth, 2, np.maximum(13 + 3 * coarse, 5))
    envelope *= 1 - smoothstep(np.abs(angle), 0.75, 1.3)
    score = 0.85 * coarse + 0.5 * medium + 0.42 * fine + 0.55 * ducts * smoothstep(radius, 5, 28)
    score += 2.2 * np.exp(-radius / 16) - 0.022 * np.maximum(radius - 34, 0) - 0.85 * angle**2
    score += 1.6 * (envelope - 1)
    cut = np.quantile(score[envelope > 0.3][::5], 1 - density)
    lobes = 0.85 * smoothstep(score, cut - 0.40, cut + 0.35) + 0.15 * smoothstep(score + fine, cut, cut + 1.2)
    creases = 1 - 0.24 * np.exp(-((fine / 0.28) ** 2))  # fat between the lobules
    return lobes * creases * (envelope > 0.02)


def _ligaments(skin_depth, wall_depth, fields):
    """Cooper's ligaments: thin curved sheets, the zero sets of smooth fields, tied to the skin."""
    sheets = 0.30 * np.exp(-(((fields.medium + 0.3 * fields.fine) / 0.11) ** 2))
    sheets += 0.28 * np.exp(-((fields.coarse / 0.045) ** 2))
    return sheets * smoothstep(-wall_depth, 1, 6) * smoothstep(skin_depth, 1, 4)


def _winding_path(start, end, wander_mm, rng):
    """Points every 0.5 mm or so from start to end, bent by a few slow sine waves: (N, 3)."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    t = np.linspace(0, 1, max(8, int(np.linalg.norm(end - start) / 0.5)))[:, None]
    bend = sum(np.sin(np.pi * k * t) * rng.normal(0, wander_mm / k**1.1, 3) * (0.7, 1, 1) for k in range(1, 6))
    return start + (end - start) * t + bend


def _draw_tubes(grid, tubes):
    """Volume fraction of tubes, given as (centreline of (z, y, lateral) points, radius in mm at each).

    Each point deposits its cross-section into the voxels around it: sampling would make thin oblique vessels look
    like strings of beads.
    """
    paths, radii = zip(*tubes, strict=True)
    points, radius = np.concatenate(paths), np.concatenate(radii)
    steps = np.concatenate([np.linalg.norm(np.gradient(p, axis=0), axis=1) for p in paths])
    area = np.pi * radius**2
    origin = np.array([axis[0] for axis in grid.axes], float)
    spacing = np.array(grid.spacing_mm) * [np.sign(axis[1] - axis[0]) for axis in grid.axes]
    sigma = np.sqrt((0.55 * np.array(grid.spacing_mm)) ** 2 + 0.25 * radius[:, None] ** 2)
    at = (points - origin) / spacing
    near = np.rint(at).astype(int)[:, :, None] + np.arange(-3, 4)  # (N, 3, 7)
    kernel = np.exp(-((((near - at[:, :, None]) * spacing[:, None]) / sigma[:, :, None]) ** 2) / 2)
    kernel /= sigma[:, :, None] * np.sqrt(2 * np.pi)
    size = np.array(grid.shape)[:, None]
    kernel *= (near >= 0) & (near < size)
    near = np.clip(near, 0, size - 1)
    flat = (near[:, 0, :, None, None] * size[1] + near[:, 1, None, :, None]) * size[2] + near[:, 2, None, None, :]
    weight = np.einsum("n,na,nb,nc->nabc", area * steps, kernel[:, 0], kernel[:, 1], kernel[:, 2])
    volume = np.bincount(flat.ravel(), weight.ravel(), minlength=int(np.prod(grid.shape)))
    return np.minimum(volume, 1).reshape(grid.shape).astype(np.float32)


def _vessels(grid, nipple, width, rng):
    """Perforators from the internal mammary (medial) and lateral thoracic vessels, branching to the nipple."""
    tubes = []  # of (path, radii)
    z0, y0, lat0 = nipple
    slab = float(np.abs(grid.z).max())
    for _ in range(rng.integers(4, 8)):
        medial = rng.random() < 0.45
        start = (rng.uniform(-slab, slab), grid.depth_mm * 0.66, lat0 + width * (-0.72 if medial else 0.80))
        end = (z0 + rng.normal(0, 12), y0 + rng.uniform(18, 45), lat0 + rng.normal(0, 14))
        trunk = _winding_path(start, end, 6.5, rng)
        thick = rng.uniform(0.8, 1.5)
        tubes.append((trunk, np.linspace(thick, 0.45 * thick, len(trunk))))
        for _ in range(rng.integers(1, 4)):
            k = rng.integers(len(trunk) // 5, 4 * len(trunk) // 5)
            twig = _winding_path(trunk[k], trunk[k] + rng.normal(0, (9, 20, 20)), 4, rng)
            tubes.append((twig, np.linspace(tubes[-1][1][0] * 0.6, 0.35, len(twig))))
    mammary = _winding_path((-slab - 4, 0.78 * grid.depth_mm, -56), (slab + 4, 0.78 * grid.depth_mm, -56), 1.5, rng)
    return _draw_tubes(grid, [*tubes, (mammary, np.full(len(mammary), 1.6))])


def _lymph_node(grid, wall_y, width, medium, rng):
    """Fraction of a bean with a fatty hilum, low in the axilla beside the chest wall; in most slabs."""
    present, size = rng.random() < 0.7, rng.uniform(3.5, 6.5)
    z0, lat0 = rng.uniform(0, 0.9) * float(grid.z.max()), width * rng.uniform(0.90, 1.05)
    iz, _, ix = grid.index((z0, 0, lat0))
    y0 = float(wall_y[iz, 0, ix]) - rng.uniform(7, 9)
    dz, dy, dlat = grid.z - z0, (grid.y - y0) * 1.4, (grid.lateral - lat0) / 1.2
    shell = np.sqrt(dz**2 + dy**2 + dlat**2) / size * (1 + 0.12 * medium)
    hilum = np.sqrt(dz**2 + (dy + 0.5 * size) ** 2 + (dlat + 0.3 * size) ** 2) / (0.6 * size)
    edge = 0.8 * grid.spacing_mm[1] / size
    return present * (1 - smoothstep(shell, 1 - edge, 1 + edge)) * smoothstep(hilum, 0.6, 1.3)


def _chest(grid, wall_depth, side, fine, rng):
    """Fractions behind the breast: muscle (pectoral, with ribs and their muscles), lung, heart."""
    edge = 0.6 * grid.spacing_mm[1]
    thickness = 9 + 0.05 * grid.lateral + 2 * smooth_field((grid.z, grid.lateral), 8.0, rng)[:, None, :]
    pectoral = smoothstep(wall_depth, -edge, edge) * (1 - smoothstep(wall_depth, thickness - 1, thickness + 1))
    pectoral = pectoral * (1 - 0.35 * np.exp(-(((wall_depth - 0.55 * thickness) / 1.2) ** 2)))  # fat plane
    lung = smoothstep(wall_depth, thickness + 11, thickness + 14)
    behind = smoothstep(wall_depth, thickness - 1, thickness + 1) * (1 - lung)
    beat = (grid.lateral * 0.5 + grid.z * 1.1) / 9 + rng.uniform(0, 6)
    ribs = behind * smoothstep(np.cos(beat + 0.15 * fine), -0.25, 0.35)
    middle = -66 if side == "left" else -104  # its right edge lies in the right breast's volume, too
    reach = np.sqrt(((grid.lateral - middle) / 68) ** 2 + ((grid.y - grid.depth_mm) / 52) ** 2)
    heart = lung * (1 - smoothstep(reach, 0.95, 1.05))
    return pectoral + 0.55 * ribs, lung - heart, heart


def make_anatomy(grid: Grid, truth: Truth, rng: np.random.Generator) -> Anatomy:
    """The breast of one patient; of the truth only density and side are used."""
    fields = Fields(*[smooth_field((grid.z, grid.y, grid.lateral), s, rng) for s in (7.5, 3.2, 1.6)])
    skin_y, wall_y, bump, nipple, width = _surfaces(grid, rng)
    slope = np.hypot(*np.gradient(skin_y[:, 0, :], grid.spacing_mm[0], grid.spacing_mm[2]))[:, None, :]
    skin_depth, wall_depth = (grid.y - skin_y) / np.sqrt(1 + slope**2), grid.y - wall_y
    edge = 0.6 * grid.spacing_mm[1]
    body = smoothstep(skin_depth, -edge, edge)
    below_skin = smoothstep(skin_depth, 1.9 + 2 * bump - edge, 1.9 + 2 * bump + edge)
    breast = body * below_skin * (1 - smoothstep(wall_depth, -edge, edge))
    muscle, lung, heart = _chest(grid, wall_depth, truth.side, fields.fine, rng)
    gland = breast * _gland_tissue(grid, skin_depth, wall_depth, fields, nipple, truth.density, rng)
    sheets = np.clip(breast * _ligaments(skin_depth, wall_depth, fields) - gland, 0, 1)
    node = breast * _lymph_node(grid, wall_y, width, fields.medium, rng)
    vessel = np.maximum(_vessels(grid, nipple, width, rng) * body * (1 - lung), 0.85 * heart)
    room = (1 - vessel) * (1 - node)
    fractions = {
        "skin": body * (1 - below_skin) * room,
        "gland": gland * room,
        "ligament": sheets * room,
        "muscle": muscle * body * room,
        "vessel": vessel * (1 - node),
        "node": node,
        "lung": lung * body,
    }
    fractions = {name: fraction.astype(np.float32) for name, fraction in fractions.items()}
    return Anatomy(body=body, skin_depth_mm=skin_depth, wall_depth_mm=wall_depth, fields=fields, **fractions)
