"""What a study's frozen reference, or an exported model, says of one case of one's own, as a page and a picture.

results/<cohort>/cases/<case>/case.html, case.png; ignored by git.  Of the patient's identity they show the folder's
last name and nothing else; the page stands alone and loads nothing.
"""

import base64
import io
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.calibration import recalibrate
from her2core.case import MEASURES, measures, network_input, read_case, warnings_for
from her2core.config import Study, Title
from her2core.formats.dicom import read_dce
from her2core.formats.examination import Examination, is_nifti, numbered
from her2core.formats.nifti import read_volumes, upright
from her2core.preprocess import pixel_mm
from her2core.records import whole
from her2core.report.figures.sheet import case_sheet
from her2core.report.figures.style import settle
from her2core.report.frozen import FrozenModel, frozen_model
from her2core.runs import spatial_attention
from her2core.train import AGGREGATE, predict_slices

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)


@dataclass(frozen=True)
class Verdict:
    """title: whose networks answer, and what.  case: as its cohort was cut; uncut: as it was read.

    curve: of `lesion_curve`.  images, outlines: of `network_input`.  gates: `(3, H, W)` of the middle slice.
    pixel_mm: of the images.  table: a row per measure, beside the training patients' range.  doubts: sentences.
    seeds: a row per seed: probability, threshold from its validation patients (Youden), called positive by it.
    calibrated: the mean after the line fitted on `fitted_on` validation patients; None where none could be fitted.
    scores: label and mean probability of the study's test patients.
    """

    title: Title
    case: Examination
    uncut: Examination
    curve: pd.DataFrame
    images: np.ndarray
    outlines: np.ndarray
    gates: np.ndarray
    pixel_mm: float
    table: pd.DataFrame
    doubts: list[str]
    seeds: pd.DataFrame
    calibrated: float | None
    fitted_on: int
    scores: pd.DataFrame

    @property
    def answer(self) -> dict[str, float]:
        """Lowest, mean and highest probability of the seeds, and their mean threshold."""
        found = self.seeds["probability"].agg(lowest="min", mean="mean", highest="max")
        return found.to_dict() | {"threshold": self.seeds["threshold"].mean()}

    def sheet(self) -> Figure:
        """The picture."""
        middle = len(self.images) // 2
        crop = self.images[middle], self.gates, self.outlines[middle], self.pixel_mm
        volumes = self.uncut.phases, self.uncut.mask, self.uncut.geometry.spacing_mm
        return case_sheet(*volumes, self.curve, crop, self.scores, self.answer, self.case.name, self.title)


def lesion_curve(folder: Path, case: Examination) -> pd.DataFrame:
    """The lesion's enhancement over the first phase chosen, in every phase that lies in the folder.

    case: read from there, uncut.  Rows of phase, minutes since that phase (NaN where unknown), low, enhancement,
    high (%; mean, and quartiles of voxels), chosen.
    """
    images = Path(folder) / "dce"
    files = sorted(images.glob("[!.]*.nii*"))
    if any(map(is_nifti, files)):
        files = dict(enumerate(files)) if len(files) == 1 else numbered(images)
        volumes = [volume for file in files.values() for volume in read_volumes(file)[0]]
        numbers, minutes = [*files] if len(files) > 1 else range(len(volumes)), np.full(len(volumes), np.nan)
    else:
        series = read_dce(images)
        volumes, _ = upright(series.array, series.geometry)
        numbers, minutes = range(len(volumes)), np.array(series.times_s) / 60
    inside = np.array([volume[case.mask] for volume in volumes], float)
    pre = [*numbers].index(case.chosen.pre)
    percent = 100 * (inside / max(inside[pre].mean(), 1e-9) - inside[pre] / max(inside[pre].mean(), 1e-9))
    low, high = np.quantile(percent, (0.25, 0.75), axis=1)
    table = {"phase": numbers, "minutes": minutes - minutes[pre], "low": low, "enhancement": percent.mean(1)}
    return pd.DataFrame(table | {"high": high}).assign(chosen=[k in [*case.chosen] for k in numbers])


def _measure_table(case, images, ranges):
    """A row per measure; outside: "", or on which side of the range."""
    found, rows = measures(case, images), []
    for name, measure in MEASURES.items():
        value, limits = found[name], ranges[name]
        side = "below" if value < limits.low else "above"
        outside = "unknown" if np.isnan(value) else "" if limits.holds(value, measure) else side
        rows.append((measure.words, measure.unit, value, limits.low, limits.high, limits.of, outside))
    return pd.DataFrame(rows, columns=["measure", "unit", "this case", "from", "to", "range of", "outside"])


def _answers(model, slices):
    """→ the table `seeds`, and the calibrated mean or None."""
    combine, held = AGGREGATE[model.described.aggregate], model.comparison
    rows = [
        (member.seed, combine(predict_slices(network, slices)))
        for member, network in zip(model.described.networks, model.networks, strict=True)
    ]
    seeds = pd.DataFrame(rows, columns=["seed", "probability"]).groupby("seed", as_index=False).mean()
    seeds["threshold"] = [held.thresholds[str(seed)] for seed in seeds["seed"]]
    seeds["called"] = seeds["probability"] >= seeds["threshold"]
    if not any(held.lines):
        return seeds, None
    return seeds, float(np.mean([recalibrate(seeds["probability"].mean(), line) for line in held.lines]))


def examine(source: Study | FrozenModel, folder: Path) -> Verdict:
    """What a study's reference, or an exported model, says of the examination in `folder`; ValueError where that is
    incomplete, or the networks have no spatial attention to show."""
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; expected one with dce/ and seg.dcm, mask/ or a box in case.json")
    model = frozen_model(source) if isinstance(source, Study) else source
    if model.described.architecture.get("attention") not in ("both", "spatial") or model.described.model != "thda":
        found = f"{model.described.run} has no spatial attention, which the page shows"
        raise ValueError(f"{found}; expected a THDA that has; a folder's README.md predicts without a page")
    preprocessing, config, ranges = model.preprocessing, model.preprocessing.config, model.comparison.ranges
    uncut = read_case(folder, config)
    case = read_case(folder, config, preprocessing.cut) if preprocessing.cut else uncut
    images, outlines, fed = network_input(case, config, preprocessing.view)
    slices = torch.from_numpy(fed).to(next(model.networks[0].parameters()).device)
    gates = spatial_attention(model.networks, slices)[len(images) // 2].cpu().numpy()
    title = Title(f"networks of the {model.title}")
    title.endpoint = model.title.endpoint
    seen = lesion_curve(folder, uncut), images, outlines, gates, pixel_mm(case.geometry, config)
    doubts = _measure_table(case, images, ranges), warnings_for(case, images, ranges)
    scores = pd.DataFrame(model.comparison.scores, columns=["label", "probability"])
    return Verdict(title, case, uncut, *seen, *doubts, *_answers(model, slices), model.comparison.fitted_on, scores)


def sentences(verdict: Verdict) -> list[str]:
    """The finding first: what the networks answer, and how much it is worth."""
    answer, seeds, positive = verdict.answer, verdict.seeds, verdict.title.endpoint.positive
    spread = "{} seeds from {lowest:.2f} to {highest:.2f}".format(len(seeds), **answer)
    spread = "1 seed" if len(seeds) == 1 else spread
    line = f"by a line fitted on {verdict.fitted_on} validation patients"
    none = verdict.calibrated is None
    right = "No line could be fitted" if none else f"Calibrated {line}: {verdict.calibrated:.2f}"
    called = f"{int(seeds['called'].sum())} of {len(seeds)}, each at its threshold from validation"
    beyond = f"mean {answer['threshold']:.2f}); {int((seeds['probability'] >= 0.5).sum())} of {len(seeds)} at 0.5"
    ranks = [
        f"{(part['probability'] < answer['mean']).mean():.0%} of {len(part)} {verdict.title.endpoint.of(label)}"
        for label, part in verdict.scores.groupby("label")
    ]
    outside = verdict.table["outside"].isin(["below", "above"]).sum()
    return [
        f"Probability of {positive}: {answer['mean']:.2f} ({spread}), by the {verdict.title}.",
        f"{right}.",
        f"Seeds that call it {positive}: {called} ({beyond}.",
        f"It is higher than that of {' and '.join(ranks)} among the study's test patients.",
        f"{outside} of {len(verdict.table)} measures lie outside the training patients' range.",
    ]


def _png(figure):
    """A figure as PNG, 200 dots per inch."""
    settle(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()


def _place(folder, name, images):
    """folder/<name>, or the first of <name>-2, <name>-3, … where no page of other images lies: folders of several
    patients may be called alike."""
    for number in count(1):
        place = folder / (name if number == 1 else f"{name}-{number}")
        page = place / "case.html"
        if not page.is_file() or f'content="{images}"' in page.read_text("utf-8"):
            return place


def write_case(verdict: Verdict, folder: Path) -> list[Path]:
    """case.png and case.html in folder/<case>/, or beside it where that is another patient's; returns their paths.
    The same case gives the same bytes, in the same place."""
    images = sha256(np.ascontiguousarray(verdict.uncut.phases)).hexdigest()[:16]
    png, template = _png(verdict.sheet()), Path(__file__).with_name("one_case.html.jinja").read_text("utf-8")
    html = _ENVIRONMENT.from_string(template).render(
        v=verdict,
        images=images,
        said=sentences(verdict),
        png=base64.b64encode(png).decode(),
        rows=verdict.table.to_dict("records"),
    )
    place = _place(Path(folder), verdict.case.name, images)
    paths = [place / name for name in ("case.png", "case.html")]
    for path, content in zip(paths, (png, html.encode()), strict=True):
        with whole(path) as part:
            part.write_bytes(content)
    return paths
