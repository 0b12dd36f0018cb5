"""The sample in git: a few patients of a finished study, with which everything that shows works without computing.

    python -m her2core.cohorts.sample [STUDY]      make sample

writes the study `sample`: studies/sample/params.yaml, and in git as well as below data/sample, models/sample and
results/sample: the prepared arrays of a patient of each collection, split and label, and the middle slice of some
training patients more, with whom a case is compared; the reference's weights of its first seed, with their digests
and predictions; and two examinations as they were acquired, one DICOM, one NIfTI.
The same study gives the same bytes.
"""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from her2core.config import MERGED, Study, read_yaml
from her2core.dataset import Prepared, read_prepared
from her2core.formats.volume import PHASE_COLUMNS
from her2core.records import check_complete, whole, write_digests
from her2core.runs import Run

_NAME = "sample"
_HEADER = (
    "# A few patients of the study {}, in git with their arrays and one seed's weights.  Made by: make sample\n"
)
_TRAINING = 10  # training patients of each collection and label, of whom a slice is kept at least
_PACKED = ("images", "quantiles", "moments", "neighbours")  # files of a bias field, a row a slice


def chosen_rows(prepared: Prepared) -> list[int]:
    """All slices of the first patient of each collection, split and label; of some training patients the middle."""
    by = ["dataset", "split", "label"]
    table = pd.DataFrame({k: getattr(prepared, k) for k in ("patient", *by)})
    all_slices = table["patient"].isin(table.drop_duplicates(by)["patient"])
    middle = table.loc[prepared.middle()].query("split == 'train'").groupby(by).head(_TRAINING)
    return sorted({*table.index[all_slices], *middle.index})


def _write_prepared(source, out, kept):
    """Of the stage's files these rows, with digests of their own."""
    lines = list(csv.reader(read_prepared(source, "slices.csv", Path.read_text).splitlines()))
    patients = {lines[1 + n][lines[0].index("patient")] for n in kept}
    with whole(out) as part:
        part.mkdir()
        for name in sorted(path.name for path in source.glob("*.npy")):
            array = read_prepared(source, name, mmap_mode="r")
            by_slice = name == "masks.npy" or name.startswith(_PACKED)
            np.save(part / name, array[kept] if by_slice else array)
        with open(part / "slices.csv", "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([lines[0], *(lines[1 + n] for n in kept)])
        table = read_prepared(source, "kinetics.csv", pd.read_csv, dtype=str, keep_default_na=False)
        table[table["patient"].isin(patients)].to_csv(part / "kinetics.csv", index=False)
        write_digests(part / "digests.csv", sorted(part.iterdir()))


def _write_cases(source, out, rows):
    """The first external patient in DICOM and the first of BreastDCEDL's layout, each as a case of one's own."""
    with whole(out) as part:
        for layout, split in (("dicom_roi", "external"), ("breastdcedl", "test")):
            for row in rows[(rows["layout"] == layout) & (rows["split"] == split)].to_dict("records")[:1]:
                home = part / row["dataset"] / row["pid"]
                for name in check_complete(row["pid"], source)["files"]:
                    inside = Path(name).relative_to(row["dataset"])
                    inside = inside.relative_to(row["pid"]) if row["pid"] in inside.parts else inside
                    (home / inside).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / name, home / inside)
                if layout == "breastdcedl":
                    told = {column: int(row[column]) for column in PHASE_COLUMNS}
                    told |= {column: row[column] for column in ("slice_thick", "xy_spacing")}
                    (home / "case.json").write_text(json.dumps(told) + "\n")


def make_sample(study: Study) -> list[Path]:
    """Write the sample of a finished study; returns the folders and files written.

    ValueError where the study has not been computed, or what it left is not as it was written."""
    if not study.is_synthetic:
        raise ValueError(f"{study.name}: its patients are no phantoms; expected arrays that may go into git")
    top, run, acquired = study.top, Run.of(study), study.data("acquire")
    predictions = study.results / "predictions" / f"{run.name}.csv"
    study.need("acquire", acquired / "metadata.csv")
    study.need("prepare", study.data("prepare"))
    study.need(f"train@{run.name}", run.folder, run.frozen, predictions)
    run.networks()  # ValueError unless they are those that were frozen
    seed = run.training.seeds[0]
    data, models, results = (top / kind / _NAME for kind in ("data", "models", "results"))
    _write_prepared(study.data("prepare"), data / "prepare", chosen_rows(run.opened))
    _write_cases(acquired, data / "acquire", pd.read_csv(acquired / "metadata.csv", dtype={"pid": str}))
    weights = models / run.name / f"seed{seed}.safetensors"
    with whole(weights.parent) as part:
        part.mkdir()
        shutil.copyfile(run.folder / weights.name, part / weights.name)
    write_digests(results / "weights" / f"{run.name}.csv", [weights])
    table = pd.read_csv(predictions, dtype=str)
    with whole(results / "predictions" / f"{run.name}.csv") as part:
        table[table["seed"] == str(seed)].to_csv(part, index=False)
    return [data, models, results / "weights", results / "predictions", _write_parameters(study, run, seed)]


def _write_parameters(study, run, seed):
    """studies/sample/params.yaml: what differs from the top level's."""
    differs = {} if study.folder == study.top else read_yaml(study.folder / "params.yaml")
    own = {"name": _NAME, "runs": [run.name], "acquire": dict(study.section("acquire"))}
    own |= {section: differs.get(section, {}) for section in MERGED}
    own["train"] = own["train"] | {"seeds": [seed]}
    yaml, text, path = YAML(), io.StringIO(), study.top / "studies" / _NAME / "params.yaml"
    yaml.default_flow_style = None  # lists in one line
    yaml.dump(own, text)
    with whole(path) as part:
        part.write_text(_HEADER.format(study.name) + text.getvalue(), "utf-8")
    return path


def main(arguments: list[str]) -> None:
    """The command line."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        sys.exit(__doc__)
    try:
        study = Study.open(*arguments)
        for path in make_sample(study):
            size = sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())
            print(f"{path.relative_to(study.top)}: {size / 1e6:.1f} MB")
    except (ValueError, OSError) as error:
        sys.exit(f"\nsample: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
