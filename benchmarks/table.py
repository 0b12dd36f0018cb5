"""The README's table of benchmarks, from the files that their scripts wrote.

python benchmarks/table.py        # writes it into README.md
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- written by benchmarks/table.py -->", "<!-- end -->"


def found_by(name):
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _range(values, digits=1):
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def reading(found):
    ours = found["arms"]["her2core"]
    times = ", ".join(f"{t['median']:.2f} × {other}'s" for other, t in ours["times"].items())
    memory = f"{ours['memory']:.2f} × the array in memory (SimpleITK {found['arms']['SimpleITK']['memory']:.2f} ×)"
    return f"with all checks {ours['seconds']['median']:.2f} s: {times} time; {memory}"


def normalization(found):
    faster = {
        package: _range([r["times_her2core"]["median"] for r in found["rows"] if r["package"] == package])
        for package in ("MONAI", "TorchIO")
    }
    apart = max(row["grey_levels_apart"] for row in found["rows"])
    times = "{MONAI} × faster than MONAI, {TorchIO} × than TorchIO".format(**faster)
    sizes = {tuple(row["phases"]) for row in found["rows"]}
    return f"{times} ({len(sizes)} sizes), {apart} grey levels apart at most"


def n4(found):
    def one(arm, seconds_digits=1):
        r, left, seconds = arm["r"], arm["left"]["median"], arm["seconds"]["median"]
        return f"{r['median']:.2f}, {r['lowest']:.2f}, {left:.2f}, {seconds:.{seconds_digits}f} s".replace("-", "−")

    arms, few, slabs, many = found["arms"], found["few"], found["slabs"], found["many"]
    names = [name for name in arms if name != "her2core, a field per phase"]
    beside = "; ".join(f"{name} {one(arms[name])}" for name in names)
    slow, ours = few["SimpleITK, shrink 1"], few["her2core"]
    ratio = slow["seconds"]["median"] / ours["seconds"]["median"]
    thin = _range([slabs[name]["r"]["median"] for name in slabs if name.startswith("slab")], 2)
    kept, least = (slabs[name]["r"]["median"] for name in ("lesion ± 2 slices", "three slices"))
    r, left = many["r"], many["left"]["median"]
    often = f"Of {r['n']} further phantoms (median r {r['median']:.2f}, {left:.2f} left) {many['wrong']} have an r"
    often += f" below {many['wrong_below']}, the lowest {r['lowest']:.2f}"
    what = "median r with the true field, lowest r, share of the shading left, processor time"
    return (
        f"{what} of {arms['her2core']['r']['n']} patients: {beside}. On {slow['r']['n']}: "
        f"SimpleITK, shrink 1 {one(slow, 0)}, {ratio:.0f} × ours ({one(ours)}). "
        f"Ours on what MinCrop keeps {kept:.2f}, on slabs of 11 to 34 mm {thin}, on three slices {least:.2f}. "
        f"{often.replace('-', '−')}"
    )


def patient(found):
    def one(form, what):
        its = found["forms"][form][what]
        beyond = f"{100 * its['beyond_parts']['median']:+.0f} %".replace("-", "−")
        return f"{its['whole']['median']:.2f} s ({beyond})"

    words = [
        f"from {form} to arrays {one(form, 'arrays')}, to a probability of three seeds {one(form, 'probability')}"
        for form in found["forms"]
    ]
    parts = found["forms"]["DICOM"]["arrays"]["parts"]
    total = sum(part["median"] for part in parts.values())
    named = sorted(parts, key=lambda part: -parts[part]["median"])[:3]
    most = ", ".join(f"{part} {parts[part]['median'] / total:.0%}".replace("%", " %") for part in named)
    command = _range([seconds["median"] for seconds in found["command"].values()])
    return (
        f"{'; '.join(words)}; in brackets the whole beyond the sum of its parts. Most of it, from DICOM to arrays: "
        f"{most}. `her2 predict`, process and page: {command} s"
    )


def model(found):
    def ratios(name, to):
        return _range([p["arms"][name][f"times {to}"]["median"] for p in found["passes"]], 2)

    names = {"thda": "THDA", "vit": "ViT-B/16", "cvt": "CvT-13"}
    (full,) = [patient["arms"] for patient in found["patients"] if patient["study"] == "ispy"]
    times = ", ".join(
        f"{words} {full[name]['times resnet34_rgb']['median']:.1f} ×" for name, words in names.items()
    )
    plain, folded = "torchvision ResNet-34, 3N images", "THDA's backbone, one call of 3N"
    three = ratios("THDA's backbone, three calls of N", folded)
    return (
        f"{ratios('THDA', plain)} × its time; three calls take {three} × one folded; "
        f"a patient of the study ispy, beside plain early-fusion ResNet-34: {times}"
    )


def training_step(found):
    return f"{found['gain']:.2f} × the slices per second of its fastest form (layouts and batches of 32 and 64)"


def coverage(found):
    by = {}
    for row in found["coverage"]:
        by.setdefault(row["study"], []).append(100 * row["auc"])
    shares = ", ".join(f"{name} {_range(values, 0)} %" for name, values in by.items())
    power = {}
    for row in found["power"]["power"]:
        power.setdefault(row["seed_sd"], []).append(100 * row["power"])
    seen = ", ".join(f"{sd} in {_range(values, 0)} %" for sd, values in power.items())
    apart = _range([100 * row["difference"] for row in [*found["coverage"], *found["power"]["power"]]], 0)
    promised = "what is called detectable at a power of 80 % is found, where seeds differ in AUC by an SD of"
    return f"of one AUC: {shares}; of a difference of two {apart} %; {promised} {seen}"


def gpu(found):
    if found is None:
        return "not run: no GPU was at hand (`--smoke` runs on a CPU)"
    best = max(found["runs"], key=lambda run: run["slices_per_s"])
    return f"{best['slices_per_s']:.0f} slices/s on {found['device']}, {best['times_plain']} × the plain loop"


ROWS = {
    reading: "a DICOM series of 640 files",
    normalization: "one patient's three phases to 8 bits",
    n4: "bias field of a phantom, beside SimpleITK and LapGM",
    patient: "a phantom patient, all of it",
    model: "THDA beside ResNet-34 on as many images",
    training_step: "THDA at 48 pixels beside plain PyTorch",
    coverage: "95 % intervals in 1,000 simulated studies, power in 1,000 or 2,000",
    gpu: "THDA at 224 × 224 beside a plain loop",
}


def _when(found):
    about = (found or {}).get("machine", {})
    return f"{about['date']}, load {about['load_before']}" if about else ""


def table() -> str:
    """The table in Markdown: a row for each script, its result, and when it ran."""
    lines = ["| benchmark | result | run |", "|---|---|---|"]
    for row, words in ROWS.items():
        found, name = found_by(row.__name__), row.__name__
        link = f"[`{name}.py`](benchmarks/{name}.{'py' if found is None else 'json'})"
        said = row(found) if found else "not run" if name != "gpu" else gpu(found)
        lines.append(f"| {link}: {words} | {said} | {_when(found)} |")
    return "\n".join(lines)


def renewed(readme: str) -> str:
    """The README with the table of now between its marks; ValueError where these are not there once each."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after or END in after:
        raise ValueError(f"README.md: expected {BEGIN} and {END}, each once")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main():
    README.write_text(renewed(README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
