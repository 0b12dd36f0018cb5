"""A cohort of one's own (`source: folder`): a table with a line for each patient; the files stay where they are.

The table is a CSV with commas and decimal points; its columns are declared in tables.yaml.  Paths in it are
relative to the table's folder and stay inside.  Images and masks may have any form of `formats.examination`.

<folder>/
    files       a link to the table's folder
    key         what makes identifiers out of the table's; who has it can tell who is who
"""

import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from her2core.cohort import check_classes, person
from her2core.cohorts.tables import DECLARED, by_patient, fault, need_columns, plain_text, read_texts
from her2core.config import root
from her2core.formats.examination import Examination, Told, anonymous, read_examination
from her2core.formats.volume import PHASE_COLUMNS
from her2core.parallel import each
from her2core.records import file_digest, read_record, whole, write_record

_COLUMNS = DECLARED["own"]  # {column: what a cell must match}
_NEEDED = [*_COLUMNS][:5]
_SPLITS = np.array(["train", "validation", "test"])
_IN_WORDS = {
    "patient": "1 to 64 characters, the first and the last no blank",
    "label": "1, 0 or nothing",
    "dce": "a file or folder",
    "site": "1 to 40 characters, the first and the last a letter or digit",
    "box": "six whole numbers, first and last voxel: z y x z y x",
} | dict.fromkeys(PHASE_COLUMNS, "a whole number below 100")
_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")  # what a spreadsheet makes of numbers such as 1-2-3


@dataclass(frozen=True)
class FolderConfig:
    """A table of patients, and how it is read."""

    source: str  # "folder"
    table: str  # the CSV, relative to the compendium
    columns: dict[str, str]  # {ours: its heading} where it differs
    ignore: tuple[str, ...]  # headings of columns that are not used
    shares: tuple[float, float, float]  # of train, validation and test, where the table leaves all splits open
    seed: int  # of that draw, which is by patient, evenly over labels and sites
    early_s: float  # wanted times after the first phase, in seconds, where the table names no phases
    late_s: float
    identifiers: str  # "hashed", or "plain" to keep the table's in every table and figure
    allow_missing: bool  # false ends with an error where a patient cannot be used; true goes on without
    jobs: int  # processes

    def __post_init__(self):
        if strange := set(self.columns) - set(_COLUMNS):
            known = f"there are {', '.join(_COLUMNS)}"
            raise ValueError(f"columns: no column is called {', '.join(sorted(strange))}; {known}")
        if min(self.shares) < 0 or not np.isclose(sum(self.shares), 1):
            raise ValueError(f"shares {self.shares}, expected three of train, validation and test that make 1")
        if self.identifiers not in ("hashed", "plain"):
            raise ValueError(f"identifiers {self.identifiers!r}, expected hashed or plain")

    @property
    def path(self) -> Path:
        """The table's file."""
        return root() / self.table

    def patients(self) -> pd.DataFrame:
        """The table, with a split for each patient."""
        table = _read_table(self.path, self.columns, self.ignore)
        return table.assign(split=draw_splits(table, self.shares, self.seed))

    def get(self, folder: Path) -> tuple[list[dict], list[dict]]:
        """Read the headers and masks of all patients → records of those that can be used, rows with a reason of the
        others."""
        folder.mkdir(parents=True, exist_ok=True)
        table, home, link = self.patients(), self.path.parent.resolve(), folder / "files"
        if not link.is_symlink() or link.readlink() != home:
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(home, target_is_directory=True)
            except OSError as error:
                how = "Windows allows links in Developer Mode, and some disks have none"
                raise OSError(error.errno, f"{link}: cannot link to {home} ({error.strerror}); {how}") from error
        table["dataset"] = table["site"].str.lower().str.replace(r"\W+", "_", regex=True)
        names = _names(table.index, folder, self)
        rows = [row | {"pid": names[row["patient"]]} for row in table.reset_index().to_dict("records")]
        results = each(partial(_take, folder=folder, config=self), rows, self.jobs, "acquire")
        return [r for r in results if "files" in r], [r for r in results if "reason" in r]

    def describe(self) -> pd.DataFrame:
        """A row per site: patients; nothing is copied."""
        sites = self.patients()["site"].value_counts(sort=False)
        table = sites.rename("patients").rename_axis("collection").reset_index()
        return table.assign(**{"from": "folder", "kept_GB": 0.0, "under_way_GB": 0.0})

    def sources(self) -> Iterator[dict]:
        """What the data are: a table, which has no version but its bytes."""
        digest = file_digest(self.path, "sha256")
        known = {"source": "folder", "licence": "private", "table": self.path.name}
        yield known | {"sha256": digest, "seed": self.seed}

    def checks(self, folder: Path, network: bool) -> Iterator[Callable]:
        """The table can be read, and its splits be drawn."""
        yield self.patients


def _read_table(path: Path, columns: Mapping[str, str], ignore: tuple[str, ...] = ()) -> pd.DataFrame:
    """The table as text, indexed by patient, with all of _COLUMNS, empty cells as missing.

    ValueError for a column that is missing or unknown, a cell that cannot be true, a patient twice, a path outside
    the table's folder or to nothing."""
    table = read_texts(path).drop(columns=list(ignore), errors="ignore")
    table = table.rename(columns={theirs: ours for ours, theirs in columns.items()})
    need_columns(table, _NEEDED, path)
    if strange := [str(c) for c in table if c not in _COLUMNS]:
        known = f"there are {', '.join(_COLUMNS)}; name others under acquire.columns or acquire.ignore"
        raise ValueError(f"{path}: unknown columns {', '.join(strange)}; {known}")
    table = by_patient(table, "patient", _COLUMNS["patient"], path).reindex(columns=[*_COLUMNS][1:]).astype(object)
    values = table.columns.drop(["site", "dce", "mask"])
    table[values] = table[values].map(plain_text)  # pandas writes the 1 of a column with gaps as 1.0
    for faults in (_faults_of_cells(table), _faults_of_paths(table, path.parent)):
        if wrong := [*filter(None, faults)]:
            raise ValueError("\n".join(f"{path}: {each_of}" for each_of in wrong))
    return table


def _faults_of_cells(table):
    """What is wrong in each column by itself, "" where nothing is."""
    names = table.index.to_series()
    expected = "an identifier and no date, as spreadsheets make them"
    yield fault(names.str.fullmatch(_DATE), names, "patient", expected)
    yield fault(names.map(person).duplicated(), names, "patient", "one spelling for each patient")
    for column in table:
        good = table[column].fillna("").str.fullmatch(_COLUMNS[column])
        yield fault(~good, table[column], column, _expected(column))


def _faults_of_paths(table, home):
    """What is wrong of the files that right cells name, "" where nothing is."""
    for column in ("dce", "mask"):
        places = table[column].map(lambda name: (home / name).resolve(), na_action="ignore")
        inside = places.map(lambda place: place.is_relative_to(home.resolve()), na_action="ignore")
        yield fault(inside.eq(False), table[column], column, f"a path inside {home}")
        there = places.map(Path.exists, na_action="ignore")
        yield fault(inside & there.eq(False), table[column], column, "a file or folder that is there")
        again = (places.duplicated() & places.notna()) & (column == "dce")
        yield fault(again, table[column], column, "images that no other line has: one line for each patient")
    yield fault(table["mask"].isna() == table["box"].isna(), table["mask"], "mask", "one, or else a box")


def _expected(column):
    """What a cell must be, in words."""
    pattern = _COLUMNS[column]
    if column in _IN_WORDS:
        return _IN_WORDS[column]
    if "|" in pattern:
        return " or ".join(pattern.strip("|").split("|")) + " or nothing" * pattern.endswith("|")
    return "a number from 0 up, with a decimal point" if r"\." in pattern else f"text like {pattern}"


def draw_splits(table: pd.DataFrame, shares: tuple[float, ...], seed: int) -> pd.Series:
    """The split of each patient: the table's, or, where it leaves all of the internal ones open, drawn.

    Patients of every site and label are dealt out by the shares; only patient, site, label and seed matter, so that
    the order of lines does not.
    """
    open_ = table["split"].isna()
    internal = table["split"].ne("external").fillna(True)
    if not open_.any():
        return table["split"]
    if not open_[internal].all():
        found = f"{int(open_.sum())} patients without a split beside others that have one"
        raise ValueError(f"{found}; give all or none")
    split, rng, bounds = table["split"].copy(), np.random.default_rng(seed), np.cumsum(shares)
    drawn = table[internal].sort_index().fillna({"label": ""})
    for _, part in drawn.groupby(["site", "label"], sort=True):
        order = rng.permutation(part.index)
        first = rng.random()  # were it the same everywhere, small strata would all lack the same split
        places = (np.arange(len(order)) + first) / len(order)
        split[order] = _SPLITS[np.searchsorted(bounds, places, side="right").clip(max=2)]
    return split


def _survey(row: Mapping, home: Path, early_s: float, late_s: float) -> tuple[Examination, list[Path]]:
    """A patient's headers and mask, read as the stage `prepare` will read them, and all files.  home: of the
    table."""
    images, mask = home / row["dce"], None if pd.isna(row["mask"]) else home / row["mask"]
    wanted = {"early_s": early_s, "late_s": late_s, "name": row["patient"]}
    found = read_examination(images, mask, Told.of(row), **wanted, pixels=False)
    if found.count < 3:
        raise ValueError(f"{row['dce']}: {found.count} phases, expected three or more")
    files = [images] if images.is_file() else [p for p in images.rglob("*") if p.is_file()]
    return found, [*files, *([mask] if mask else [])]


def _metadata(row, found):
    """A patient's row of metadata.csv."""
    spacing, clinical = found.geometry.spacing_mm, {"label": "label", "HR": "hr", "age": "age"}
    return {
        **{name: row[name] for name in ("pid", "dataset", "site", "split", "dce", "mask", "box", "menopause")},
        **{ours: None if pd.isna(row[c]) else float(row[c]) for ours, c in clinical.items()},
        **dict(zip(PHASE_COLUMNS, found.chosen, strict=True)),
        "layout": "own",
        "HER2": None,  # the label is that of the study's endpoint, whichever it is
        "n_times": found.count,
        "n_z": found.mask.shape[0],
        "n_xy": found.mask.shape[2],
        "slice_thick": spacing[0],
        "xy_spacing": spacing[2],
        "early_s": found.times_s[1],
        "late_s": found.times_s[2],
        "mask_voxels": int(found.mask.sum()),
    }


def _renamed(text, row):
    """A message with the patient's new name for that of the table; a number is one only at the head of a path or
    message, as any other number may be a size."""
    at_head = "(?=[:/])" if row["patient"].isdigit() else ""
    return re.sub(rf"(?<!\w){re.escape(row['patient'])}(?!\w){at_head}", row["pid"], text)


def _take(row, folder, config):
    """One patient's record, or the row with the reason why there is none."""
    recipe = json.dumps([row, asdict(config)], default=str)
    if (record := read_record(folder, row["pid"])) and record["recipe"] == recipe:
        return record
    try:
        found, files = _survey(row, folder / "files", config.early_s, config.late_s)
    except ValueError as error:
        places = [row[column] for column in ("dce", "mask") if not pd.isna(row[column])]
        reason = anonymous(_renamed(str(error).replace(f"{folder}/files/", ""), row), folder / "files", places)
        known = {c: value for c, value in row.items() if c not in ("patient", "dce", "mask", "box")}
        return known | {"reason": f"images or mask unusable: {reason}", "failed": True}
    series, metadata = " ".join(found.source.series), _metadata(row, found)
    return write_record(folder, row["pid"], files, recipe=recipe, series_uid=series, metadata=metadata)


def _names(patients, folder, config):
    """{patient: what it is called}; a key of the study's own makes names that cannot be guessed from a list of
    ids."""
    if config.identifiers == "plain":
        return {patient: re.sub(r"[^\w-]", "_", patient) for patient in patients}
    key = folder / "key"
    if not key.is_file():
        with whole(key) as part:
            part.write_bytes(secrets.token_bytes(32))
            part.chmod(0o600)
    secret = key.read_bytes()
    return {p: f"P-{hmac.new(secret, p.encode(), 'sha256').hexdigest()[:12]}" for p in patients}


def _checked(row, home, config):
    """(what a patient would become, in words, or why not; whether it can be used; whose images they are)."""
    try:
        found, _ = _survey(row, home, config.early_s, config.late_s)
    except (ValueError, OSError) as error:
        return str(error).replace(f"{home}/", ""), False, None
    z, y, x = found.mask.shape
    times = ", ".join("?" if np.isnan(t) else f"{t:.0f}" for t in found.times_s)
    phases = f"phases {', '.join(map(str, found.chosen))} at {times} s"
    size = " × ".join(f"{mm:.3g}" for mm in found.geometry.spacing_mm)
    words = f"{phases}; {z} × {y} × {x} voxels of {size} mm; lesion of {int(found.mask.sum())} voxels"
    return "; ".join([words, *found.remarks]).replace(f"{home}/", ""), True, found.source.patient


def _one_person(table, patients):
    """A line for lines of the table that have one PatientID in their files, unless all of a site have it."""
    for _, part in table.assign(person=patients).dropna(subset="person").groupby("site"):
        for _, same in part.groupby("person"):
            if 1 < len(same) < len(part):
                yield f"{', '.join(same.index)}: one PatientID in the files; one person needs one line"


def check_table(config: FolderConfig, folded: bool | None = None) -> tuple[list[str], bool]:
    """All patients' headers and masks, and nothing computed or written → a line for each and the counts; whether
    all can be used, and in a study's splits are enough of either class.

    folded: whether the study draws folds in place of splits; None where no study is known yet."""
    table, home = config.patients(), config.path.parent.resolve()
    rows = table.reset_index().to_dict("records")
    found = each(partial(_checked, home=home, config=config), rows, config.jobs, "check")
    lines = []
    for row, (words, good, _) in zip(rows, found, strict=True):
        label = "unknown" if pd.isna(row["label"]) else row["label"]
        place = f"{row['patient']}: {row['site']}, {row['split']}, label {label}"
        lines.append(f"{place}: {'' if good else 'OUT: '}{words}")
    usable = table[np.array([good for _, good, _ in found]) & table["label"].notna()]
    for (site, split), part in usable.groupby(["site", "split"]):
        patients = f"{len(part)} patient{'s' * (len(part) > 1)}"
        lines.append(f"{site}, {split}: {patients}, {int(part['label'].eq('1').sum())} positive")
    doubled, few = list(_one_person(table, [patient for *_, patient in found])), [] if folded else _few(usable)
    enough = not few or folded is None
    return lines + doubled + few, enough and not doubled and all(good for _, good, _ in found)


def _few(usable):
    """A line where nobody has a label, or a split too few patients of either class."""
    if usable.empty:
        return ["nobody can be used whose label is known: expected 1 or 0 in the column label"]
    try:
        check_classes(usable.assign(label=usable["label"].astype(int)))
    except ValueError as error:
        return [str(error)]
    return []
