"""Documents of a study: saved results → text, the same bytes for the same results.  The caller writes them.

`reported_vs_reproduced` sets each number of the paper beside ours, `model_card` describes the frozen reference,
`checklist` says which file answers which item of the reporting standards, `data_sources` what the data are.
On a synthetic cohort the first has no number of ours at all: a phantom cannot test a number of the paper.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from scipy.stats import binomtest

from her2core.cohorts.manifest import MANIFESTS, MINCROP_LICENCE

BANNER = "embedded synthetic cohort: phantom images, no patients; no number here tests a number of the paper"
NO_RESULT = "not run"
NOT_TESTABLE = "not testable on this cohort"


def is_synthetic(sections):
    """Whether a cohort is made here; sections: its part of params.yaml, as everywhere below."""
    return sections["acquire"]["source"] == "phantom"


def markdown_table(header, rows):
    """Lines of a Markdown table; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


# --- reported and reproduced --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reported:
    """One number of the paper.

    reported: a number, a range or a direction, as it is given.  source: "abstract", "title", "summary" (one made
    from the PDF) or "third party" (who audited the authors' repository and quotes the paper).  table, key: where
    ours stands, see JUDGES.
    """

    item: str
    reported: str
    source: str
    table: str
    key: str

    @property
    def ends(self):
        """Lowest and highest number of what is reported; a single one twice."""
        numbers = [float(n.replace(",", "")) for n in re.findall(r"[\d.,]+", self.reported)]
        return min(numbers), max(numbers)


FLOW, METRIC, WINDOWS, MODELS = "flow.json", "metrics.json", "normalization_study.csv", "model_comparison.csv"
PAIRS, MODEL_PAIRS, EXTERNAL = "normalization_pairs.csv", "model_pairs.csv", "external_validation.csv"
BEST, N4, VIT, CVT = "thda-channel_q98-raw", "thda-n4", "vit", "cvt"
REPORTED = (
    Reported("patients of I-SPY1 and I-SPY2 with a HER2 status", "1,149", "abstract", FLOW, "patients"),
    Reported("of these HER2-positive", "296", "third party", FLOW, "her2_positive"),
    Reported("patients in training", "885", "third party", FLOW, "train"),
    Reported("patients in validation", "132", "third party", FLOW, "validation"),
    Reported("patients in test", "132", "third party", FLOW, "test"),
    Reported("lesions of the external site (ours: patients)", "43", "abstract", FLOW, "external"),
    Reported("AUC of THDA, internal test", "0.74", "abstract", WINDOWS, BEST),
    Reported("accuracy of THDA, internal test", "0.75", "abstract", METRIC, "accuracy"),
    Reported("AUC, window channel_q98", "0.744", "third party", WINDOWS, BEST),
    Reported("AUC, window channel_q95", "0.734", "third party", WINDOWS, "thda-channel_q95-raw"),
    Reported("AUC, window global_q99", "0.726", "third party", WINDOWS, "thda-global_q99-raw"),
    Reported("AUC, window slice_minmax", "0.723", "third party", WINDOWS, "thda-slice_minmax-raw"),
    Reported("AUC, window global_minmax", "0.700", "third party", WINDOWS, "thda-global_minmax-raw"),
    Reported("AUC with N4, against without", "slightly lower", "abstract", PAIRS, N4),
    Reported("AUC of the Vision Transformer", "0.64 to 0.67, best 0.668", "third party", MODELS, VIT),
    Reported("AUC of the Convolutional Vision Transformer", "0.61 to 0.63", "third party", MODELS, CVT),
    Reported("AUC of the Vision Transformer, against THDA", "lower", "title", MODEL_PAIRS, VIT),
    Reported("AUC of the Convolutional one, against THDA", "lower", "title", MODEL_PAIRS, CVT),
    Reported("AUC at the external site, frozen", "0.66", "abstract", EXTERNAL, BEST),
    Reported("AUC at the external site, over windows", "0.61 to 0.66", "summary", EXTERNAL, "every window"),
)


def place(reported, low, high, ours="our interval"):
    """Where a reported number or range lies against low to high of ours, in words."""
    lowest, highest = reported.ends
    if low <= lowest and highest <= high:
        return f"inside {ours}"
    if highest < low:
        return f"outside {ours}: ours is higher"
    return f"outside {ours}: ours is lower" if lowest > high else f"overlaps {ours}"


def with_interval(value, low, high):
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def judge_auc(path, reported, sections):
    """A run's AUC and interval; at the external site also the range of THDA's AUCs over the windows without N4."""
    table = pd.read_csv(path)
    if "test" in table:
        table = table[table["test"] == "external"]
    if reported.key == "every window":
        found = table[(table["model"] == "thda") & (table["bias_field"] == "raw")]["auc"]
        if found.empty:
            return None
        text = f"{found.min():.3f} to {found.max():.3f}, {len(found)} windows"
        return text, place(reported, found.min(), found.max(), "our range")
    rows = table[table["run"] == reported.key]
    if rows.empty:
        return None
    estimate = rows.iloc[0][["auc", "low", "high"]]
    return with_interval(*estimate), place(reported, estimate["low"], estimate["high"])


def judge_count(path, reported, sections):
    splits = json.loads(path.read_text())["splits"]
    inside = [v for k, v in splits.items() if k != "external"]
    sums = {key: sum(v[key] for v in inside) for key in ("patients", "her2_positive")}
    ours = (sums | {k: v["patients"] for k, v in splits.items()}).get(reported.key)
    if ours is None:
        return None
    return f"{ours:,}", "the same" if ours == reported.ends[0] else "not the same"


def judge_accuracy(path, reported, sections):
    """metrics.json has accuracies without interval; Wilson's is added."""
    internal = json.loads(path.read_text())["internal"]
    correct = round(internal["accuracy"] * internal["patients"])
    share = binomtest(correct, internal["patients"])
    interval = share.proportion_ci(sections["evaluate"]["confidence"], "wilson")
    return with_interval(internal["accuracy"], *interval), place(reported, *interval)


def judge_direction(path, reported, sections):
    """A run's difference from the paper's best, and whether the Holm-corrected test sees it, and in which sense."""
    table = pd.read_csv(path)
    rows = table[(table["run"] == reported.key) & (table["reference"] == BEST)]
    if rows.empty:
        return None
    row = rows.iloc[0]
    words = {
        "lower than the reference": "the same direction",
        "higher than the reference": "the opposite direction",
    }
    return with_interval(*row[["difference", "low", "high"]]), words.get(row["verdict"], row["verdict"])


JUDGES = {
    FLOW: judge_count,
    METRIC: judge_accuracy,
    WINDOWS: judge_auc,
    MODELS: judge_auc,
    EXTERNAL: judge_auc,
    PAIRS: judge_direction,
    MODEL_PAIRS: judge_direction,
}

CAUTION = """\
The paper's full text was not available: a number stands in its abstract, in a summary made from the PDF, or is
quoted by a third party that audited the authors' repository. The paper gives no interval. A reported number inside
our interval is not contradicted, which is less than confirmed: with 132 test patients such an interval is wide.
An accuracy of 0.74 is what calling every patient negative gives (853 of 1,149). Not obtainable, so not here: F1,
sensitivity, specificity, the external AUC of each window, and the names of two of the seven windows it compares."""


def reported_vs_reproduced(cohort, sections, results):
    """Every number of the paper beside ours, with a verdict in words, as Markdown.

    results: the cohort's folder of result tables; of a synthetic cohort it is not read.
    """
    lines = [f"# Reported and reproduced ({cohort} cohort)", ""]
    if is_synthetic(sections):
        lines += [f"**{BANNER}.** So no number of ours stands here.", ""]
    lines += [CAUTION, ""]
    rows = []
    for r in REPORTED:
        ours, verdict = "–", NOT_TESTABLE
        if not is_synthetic(sections):
            path = Path(results) / r.table
            found = JUDGES[r.table](path, r, sections) if path.is_file() else None
            ours, verdict = found or ("–", NO_RESULT)
        rows.append((r.item, r.reported, r.source, ours, verdict))
    lines += markdown_table(("number", "reported", "stands in", "ours", "verdict"), rows)
    return "\n".join(lines) + "\n"


# --- model card ---------------------------------------------------------------------------------------------


MODEL_CARD = """\
# Model card: `{{ reference }}`, {{ cohort }} cohort

{% if synthetic %}
> **EMBEDDED SYNTHETIC COHORT.** These weights were trained and tested on phantom images and have never seen a
> patient. They show that the pipeline works. They say nothing about breast cancer, and no number here tests a
> number of the paper.

{% endif %}
**Research only; not for clinical use.** Not a medical device, not cleared by any authority, not to be used for the
diagnosis or treatment of anyone.

## Model

From three phases of a breast DCE-MRI, around a lesion that is already outlined, to the probability that the lesion
is HER2-positive. The run's name says model, window and bias-field correction. Each seed is one training; a
patient's probability is the {{ sections.train.aggregate }} over slices, and an AUC is the mean over seeds.

A retrospective study, which re-implements [arXiv 2510.13897](https://arxiv.org/abs/2510.13897). Its authors
published neither training code nor weights; what the paper leaves open is a parameter below.

{{ weights }}

The files lie in DVC's storage, not in git; the pipeline makes them again, with these digests, on the same kind of
machine and the same versions of all packages.

## Data

{{ splits }}

Excluded: {{ excluded }}. Sources, versions and licences: [`data_sources.json`](data_sources.json).

## Results

Brackets: {{ confidence }} interval over patients. Internal is the test split, scored once by the frozen run;
external is another site, without any tuning. The threshold of the classification is chosen on validation patients
(Youden) and then left alone.

{{ metrics }}

{% if synthetic %}Again: **embedded synthetic cohort**. {% endif %}Each number of the paper beside ours:
[`reported_vs_reproduced.md`](reported_vs_reproduced.md).

## Use

- **Intended**: research on methods, reproduction of the study, teaching; by people who can read its statistics.
- **Not intended**: any decision about a patient, screening, a replacement for immunohistochemistry or in-situ
  hybridisation, images of another kind (other phases, no contrast, another organ).
- **Needs**: three phases in acquisition order, their geometry, and a mask of the lesion. A series whose phases,
  geometry or mask cannot be told is refused with an error, not guessed.

## Limits

- It does not find lesions: without a mask there is no prediction, and a poor mask moves the crop.
{% if synthetic %}
- The images come from a phantom. How well a network does on it depends on the phantom's settings, above all on the
  best AUC that any classifier can expect there ({{ sections.acquire.bayes_auc }}, set by hand), not on medicine.
{% else %}
- HER2 status is taken as each collection gives it; assays and cut-offs differ between them. HER2-low is not told
  from HER2-zero.
- Test sets are small, so intervals are wide; differences smaller than they are cannot be seen.
- The training patients had locally advanced or high-risk disease in two trials of neoadjuvant treatment; other
  patients are not represented. By age, hormone receptors, site and lesion size see
  [`subgroups.csv`](subgroups.csv), which is exploratory; by race or scanner nothing is known.
{% endif %}
- Probabilities are not calibrated for any clinic; a class weight in training shifts them
  ([`calibration.csv`](calibration.csv)).

## Training settings

{{ settings }}

## Licence and citation

Code: {{ citation.license }}.
{%- if synthetic %} The images are made by that code, so images and weights have the same licence.
{% else %} The data keep their own licences, some of them non-commercial, and the weights come from the data: see
[`data_sources.json`](data_sources.json).
{% endif %}

{{ cite }}
"""


def flat(values, prefix=""):
    """Nested parameters → rows of dotted name and value."""
    for key, item in values.items():
        if isinstance(item, dict) and item:
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"`{prefix}{key}`", item if isinstance(item, str) else json.dumps(item)


def digest_rows(weights):
    """A row per seed: file, size, SHA-256.  Raises ValueError where there are no weights."""
    paths = sorted(Path(weights).glob("seed*.safetensors"), key=lambda p: (len(p.name), p.name))
    if not paths:
        raise ValueError(f"{weights}: expected seed*.safetensors, found none")
    return [
        (f"`{p.name}`", f"{p.stat().st_size:,}", f"`{hashlib.sha256(p.read_bytes()).hexdigest()}`") for p in paths
    ]


def metric_rows(metrics):
    """A row per number and a column per population; `auc` takes its interval along."""
    internal, external = (
        {k: v for k, v in metrics[p].items() if isinstance(v, int | float)} for p in ("internal", "external")
    )
    for name in internal:
        if name in ("low", "high"):
            continue
        cells = []
        for part in (internal, external):
            if name == "auc":
                cells.append(with_interval(part["auc"], part["low"], part["high"]))
            else:
                cells.append(f"{part[name]:.3f}" if isinstance(part.get(name), float) else part.get(name, "–"))
        yield ("AUC" if name == "auc" else name.replace("_", " "), *cells)


def cite(citation):
    """CITATION.cff → how to cite, a line for the software and one for each reference."""
    lines = []
    for work in (citation, *citation.get("references", [])):
        names = [a.get("name") or f"{a['family-names']} {a['given-names']}" for a in work["authors"]]
        details = [work.get("version") and f"Version {work['version']}", work.get("notes"), work.get("year")]
        tail = ", ".join(str(d) for d in details if d)
        line = f"- {', '.join(names).rstrip('.')}. {work['title']}. {tail}."
        lines.append(line + (f" <{work['url']}>" if "url" in work else ""))
    return "\n".join(lines)


def model_card(cohort, sections, results, weights, citation):
    """The reference's model card as Markdown.

    results: the cohort's folder, with metrics.json and flow.json.  weights: folder of the reference's
    seed<k>.safetensors.  citation: CITATION.cff as a dictionary.  Raises ValueError where weights lack.
    """
    metrics, flow = (json.loads((Path(results) / f"{name}.json").read_text()) for name in ("metrics", "flow"))
    if Path(weights).name != metrics["reference"]:
        raise ValueError(f"metrics.json is of {metrics['reference']}, the weights are of {Path(weights).name}")
    splits = [(k, v["patients"], v["her2_positive"]) for k, v in flow["splits"].items()]
    settings = {"models": {"thda": sections["models"]["thda"]}}  # of the reference, which is THDA
    settings["train"] = {k: v for k, v in sections["train"].items() if k != "jobs"}
    template = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return template.from_string(MODEL_CARD).render(
        cohort=cohort,
        sections=sections,
        synthetic=is_synthetic(sections),
        reference=metrics["reference"],
        confidence=f"{100 * sections['evaluate']['confidence']:g} %",
        weights="\n".join(markdown_table(("weights", "bytes", "SHA-256"), digest_rows(weights))),
        splits="\n".join(markdown_table(("split", "patients", "HER2+"), splits)),
        excluded=", ".join(f"{k}: {n}" for k, n in flow["excluded"].items()) or "nobody",
        metrics="\n".join(markdown_table(("", "internal test", "external site"), metric_rows(metrics))),
        settings="\n".join(markdown_table(("parameter", "value"), flat(settings))),
        citation=citation,
        cite=cite(citation),
    )


# --- data sources -------------------------------------------------------------------------------------------

BREASTDCEDL = "10.1038/s41597-026-06589-6"


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def archive_sources(dataset, path):
    """One entry per collection of a pinned manifest."""
    table = pd.read_csv(path, dtype={"patient": str})
    entries = []
    for (collection, doi), part in table.groupby(["collection", "source_DOI"], sort=True):
        entries.append(
            {
                "dataset": dataset,
                "source": "NCI Imaging Data Commons",
                "collection": collection,
                "doi": doi,
                "licence": ", ".join(sorted(set(part["licence"]))),
                "version": "IDC v" + ", v".join(map(str, sorted(set(part["idc_version"])))),
                "patients": int(part["patient"].nunique()),
                "series": len(part),
                "instances": int(part["instances"].sum()),
                "bytes": int((part["size_MB"] * 1e6).round().sum()),
                "manifest": f"manifests/{Path(path).name}",
                "manifest_md5": md5(path),
            }
        )
    return entries


def release_source(dataset, address):
    """BreastDCEDL's MinCrop release; its files and their MD5 are pinned in the code that fetches them."""
    record = re.search(r"records/(\d+)", address)
    if not record:
        raise ValueError(f"zenodo: expected an address with records/<number>, found {address!r}")
    return {
        "dataset": dataset,
        "source": "Zenodo",
        "collection": "BreastDCEDL, MinCrop release",
        "doi": f"10.5281/zenodo.{record[1]}",
        "described_in": BREASTDCEDL,
        "licence": MINCROP_LICENCE,
        "version": f"record {record[1]}",
        "pinned_in": "her2core/cohorts/archive.py",
    }


def phantom_source(acquire):
    """A synthetic cohort is its parameters; `jobs` changes no byte."""
    return {
        "source": "phantom: made by her2core.phantom.patient",
        "doi": None,
        "licence": "MIT, as the code",
        "seed": acquire["seed"],
        "parameters": {k: v for k, v in acquire.items() if k not in ("jobs", "source", "seed")},
    }


def data_sources(cohort, sections, files, manifests):
    """What a cohort's data are and which version, for JSON.

    files: path of data/<cohort>/acquire/files.csv, the raw files as they are here.  manifests: the folder of the
    pinned series.  Raises ValueError on a source that is not known.
    """
    acquire = sections["acquire"]
    if is_synthetic(sections):
        sources = [phantom_source(acquire)]
    else:
        sources = []
        for dataset, where in acquire["collections"].items():
            if where not in ("idc", "zenodo"):
                raise ValueError(f"{dataset}: expected idc or zenodo, found {where!r}")
            if where == "idc":
                sources += archive_sources(dataset, Path(manifests) / f"{MANIFESTS[dataset]}.csv")
            else:
                sources.append(release_source(dataset, acquire["zenodo"]))
    table = pd.read_csv(files, dtype={"patient": str, "series_uid": str})
    table["series"] = table["series_uid"].fillna("").str.split().str.len()  # NIfTI has none
    on_disk = {
        dataset: {"patients": len(part)} | {k: int(part[k].sum()) for k in ("series", "files", "bytes")}
        for dataset, part in table.groupby("dataset", sort=True)
    }
    return {
        "cohort": cohort,
        "synthetic": is_synthetic(sections),
        "sources": sources,
        "on_disk": on_disk,
        "files_md5": md5(files),
    }


# --- reporting standards ------------------------------------------------------------------------------------

# item | in short | status | files | remark.   @: results/<cohort>/, %: figures/<cohort>/; bare .py: her2core/
TRIPOD_AI = """
1 | title: model, people, outcome | author | |
2 | abstract by its own checklist | author | |
3a | clinical context, reason, earlier models | author | |
3b | for whom, where in care | part | @MODEL_CARD.md | intended use; its place in care is the author's
3c | known inequalities in health | author | |
4 | objectives: development, evaluation | yes | README.md |
5a | sources of data, and why these | part | @data_sources.json | the reason is the author's
5b | dates of accrual | author | | archives shift dates; the trials' papers have them
6a | setting, number and place of centres | author | |
6b | eligibility | yes | cohort.py @flow.json |
6c | treatments received | author | |
7 | preparation, quality checks | part | @executed/01_data_preparation.ipynb params.yaml | no groups compared
8a | outcome: definition, when, why | part | labels.py | as each collection gives it; assays are the author's
8b | who assessed a subjective outcome | author | |
8c | blinding of that assessment | author | |
9a | choice of predictors | yes | README.md params.yaml | three phases, as the paper
9b | predictors: how and when measured | part | @executed/01_data_preparation.ipynb | no scanner settings
9c | who assessed subjective predictors | author | | lesion masks are the collections' own
10 | sample size, and whether it suffices | part | @expected_width.csv | sizes were given; widths are told
11 | missing data | yes | @flow.json @table_one.csv |
12a | use and partition of the data | yes | cohort.py @flow.json @leakage.json |
12b | handling of predictors | yes | normalize.py params.yaml |
12c | model, building steps, tuning | part | model.py train.py params.yaml | tuning not recorded
12d | heterogeneity between clusters | part | @subgroups.csv @external_validation.csv | sites, not their centres
12e | measures and plots, with reason | yes | evaluate.py %roc.png %calibration.png %decision_curve.png |
12f | updating of the model | yes | @executed/05_external_validation.ipynb @calibration.csv | recalibration
12g | how predictions were calculated | yes | runs.py @predictions |
13 | class imbalance | yes | params.yaml @calibration.csv %calibration.png | weights in the loss; recalibration
14 | fairness | part | @subgroups.csv | shown by age and site, exploratory; nothing was done about it; no race
15 | output, threshold | yes | @executed/06_report.ipynb @metrics.json |
16 | training against evaluation data | part | @table_one.csv @population_shift.csv | not eligibility
17 | ethical approval | author | | public, de-identified data
18a | funding | author | |
18b | conflicts of interest | author | |
18c | protocol | author | |
18d | registration | author | |
18e | data sharing | yes | @data_sources.json manifests/ispy2.csv manifests/ispy1.csv manifests/ambl.csv |
18f | code sharing | yes | README.md LICENSE |
19 | patient and public involvement | author | |
20a | flow of participants | yes | @flow.json @executed/00_cohort.ipynb |
20b | characteristics per source | part | @table_one.csv | no dates, treatments or race
20c | development against evaluation | yes | @table_one.csv @population_shift.csv |
21 | participants and events per analysis | yes | @flow.json @metrics.json |
22 | the full model | part | model.py @MODEL_CARD.md | weights are rebuilt by the pipeline, not published
23a | performance with intervals, subgroups | part | @metrics.json @subgroups.csv %roc.png | rates without interval
23b | heterogeneity of performance | part | @subgroups.csv @external_validation.csv | sites, not their centres
24 | results of updating | yes | @calibration.csv %calibration.png | raw and recalibrated, internal and external
25 | interpretation | author | | the numbers: reported_vs_reproduced.md
26 | limitations | part | @MODEL_CARD.md README.md | their weight is the author's
27a | poor or unavailable input | part | dicom.py notebooks/07_predict_case.ipynb | refused with the reason
27b | what users must do and know | part | @MODEL_CARD.md |
27c | next steps | author | |
"""

CLAIM = """
1 | title or abstract: AI, which kind | author | |
2 | structured abstract | author | |
3 | background, role of the AI | author | |
4 | aims and hypotheses | yes | README.md |
5 | prospective or retrospective | yes | @MODEL_CARD.md |
6 | goal of the study | yes | README.md |
7 | data sources | yes | @data_sources.json |
8 | inclusion and exclusion | yes | cohort.py @flow.json |
9 | preprocessing | yes | @executed/01_data_preparation.ipynb params.yaml |
10 | selection of subsets | yes | preprocess.py params.yaml |
11 | de-identification | author | | done by the archives
12 | missing data | yes | @flow.json @table_one.csv |
13 | acquisition protocol | part | @population_shift.csv | spacing and times; no field strength, TR or TE
14 | how the reference standard was obtained | part | labels.py | assays are the author's
15 | why this reference standard | author | |
16 | source of its annotations | part | labels.py dicom.py | the collections' own
17 | annotation of the test set | part | labels.py | as in training
18 | variability of raters | no | | the collections give one reading
19 | assignment to partitions | yes | cohort.py |
20 | level at which they are disjoint | yes | audit.py @leakage.json | patients
21 | intended sample size | part | @expected_width.csv | sizes were given; widths are told
22 | the model in detail | yes | model.py params.yaml |
23 | software | yes | requirements.txt |
24 | initial weights | yes | model.py params.yaml |
25 | training | yes | train.py params.yaml |
26 | selection of the final model | yes | train.py | best validation AUC
27 | ensembles | yes | evaluate.py | none; statistics are means over seeds
28 | metrics | yes | evaluate.py |
29 | significance and uncertainty | yes | evaluate.py benchmarks/coverage.json |
30 | robustness, sensitivity | part | @normalization_pairs.csv @ablation.csv @subgroups.csv | no perturbed images
31 | explainability | part | %attention_check.png @metrics.json | held against random weights, not against readers
32 | evaluation on internal data | yes | @executed/03_normalization_study.ipynb @model_comparison.csv |
33 | testing on external data | yes | @external_validation.csv |
34 | trial registration | author | |
35 | numbers included and excluded | yes | @flow.json |
36 | characteristics per partition | part | @table_one.csv @population_shift.csv | age, receptors; no race
37 | metrics with uncertainty | yes | @metrics.json @model_comparison.csv |
38 | diagnostic performance, precision | part | @metrics.json | sensitivity and specificity without interval
39 | analysis of failures | part | %failures.png | the worst at the external site are shown; why is the author's
40 | limitations | part | @MODEL_CARD.md README.md | their weight is the author's
41 | implications for practice | author | |
42 | protocol, further details | part | README.md dvc.yaml | no protocol was registered
43 | availability of code, model, data | part | README.md @MODEL_CARD.md @data_sources.json | weights not published
44 | funding | author | |
"""

METRICS = """
1 | follows a guideline | yes | @checklist.md |
2 | representative eligibility | part | cohort.py @flow.json | two trials of high-risk disease
3 | reference standard of quality | part | labels.py | as each collection gives it
4 | several centres | yes | @data_sources.json |
5 | imaging as in the clinic | part | @data_sources.json | trial protocols
6 | acquisition parameters | part | @population_shift.csv | spacing and times only
7 | interval between imaging and reference | no | | dates are shifted or absent
8 | segmentation described | part | dicom.py | masks are the collections' own
9 | automatic segmentation evaluated | n/a | | nothing is segmented here
10 | test masks by one reader or tool | part | dicom.py | as the collections were outlined
11 | preprocessing described | yes | preprocess.py normalize.py params.yaml |
12 | standard feature software | n/a | | end to end; the simple baseline has five features
13 | feature parameters reported | yes | kinetics.py | of the simple baseline
14 | non-robust features removed | n/a | | end to end
15 | redundant features removed | n/a | | end to end
16 | dimensions against sample size | n/a | | end to end
17 | robustness of deep learning | part | @normalization_pairs.csv | windows, N4, seeds
18 | proper partition | yes | cohort.py audit.py @leakage.json |
19 | confounders | part | @shortcut_probe.csv @subgroups.csv | the site as a shortcut; nothing is adjusted for
20 | suitable metrics | yes | evaluate.py @metrics.json |
21 | uncertainty | yes | evaluate.py @metrics.json |
22 | calibration | yes | @calibration.csv %calibration.png |
23 | one imaging technique, or why more | yes | README.md | DCE-MRI only
24 | against a non-imaging approach | no | |
25 | against simple models | yes | kinetics.py @model_comparison.csv | logistic regression on five features
26 | internal testing | yes | @metrics.json |
27 | external testing | yes | @external_validation.csv |
28 | data available | yes | @data_sources.json |
29 | code available | yes | README.md LICENSE |
30 | model available | part | @MODEL_CARD.md | rebuilt by the pipeline, not published
"""

STANDARDS = {
    "TRIPOD+AI (doi 10.1136/bmj-2023-078378)": TRIPOD_AI,
    "CLAIM 2024 (doi 10.1148/ryai.240300)": CLAIM,
    "METRICS (doi 10.1186/s13244-023-01572-w)": METRICS,
}
STATUS = {
    "yes": "satisfied",
    "part": "in part",
    "author": "author must write",
    "no": "not satisfied",
    "n/a": "does not apply",
}


def checklist_items(text, cohort):
    """Rows of a standard: item, in short, status, paths relative to the compendium, remark."""
    for line in text.strip().splitlines():
        item, short, status, where, remark = (cell.strip() for cell in line.split("|"))
        where = re.sub(r"(?<!\S)(?=\w+\.py)", "her2core/", where)
        paths = where.replace("@", f"results/{cohort}/").replace("%", f"figures/{cohort}/").split()
        if status not in STATUS or (status in ("yes", "part")) != bool(paths):
            raise ValueError(f"item {item}: status {status!r} with {len(paths)} files")
        yield [item, short, STATUS[status], paths, remark]


def checklist(cohort, sections):
    """Which file answers which item of the reporting standards, as Markdown, to stand in results/<cohort>/."""
    lines = [f"# Reporting standards ({cohort} cohort)", ""]
    if is_synthetic(sections):
        lines += [f"**{BANNER}.** What is said of patients is said of the phantom.", ""]
    lines += [
        "Items in our own short words; the standards say what each asks. *In part*: the remark says what lacks. "
        "*Author must write*: software cannot know it.",
        "",
    ]
    for standard, text in STANDARDS.items():
        rows = list(checklist_items(text, cohort))
        counts = {status: sum(row[2] == status for row in rows) for status in STATUS.values()}
        lines += [f"## {standard}", "", ", ".join(f"{s}: {n}" for s, n in counts.items() if n) + ".", ""]
        cells = [
            (i, short, s, ", ".join(f"[`{p}`](../../{p})" for p in paths), r) for i, short, s, paths, r in rows
        ]
        lines += [*markdown_table(("item", "in short", "status", "file", "remark"), cells), ""]
    return "\n".join(lines)
