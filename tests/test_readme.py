"""What the README says of both studies, held against their tables; `test_lock` and `test_findings` hold the rest.

Not held: times and sizes, and what images of 32 pixels gave, whose tables are no longer here.
"""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
from committed import STUDIES, committed
from house import PARAMS, TOP
from scipy import stats

README = " ".join((TOP / "README.md").read_text("utf-8").split())
EMBEDDED, INSTRUMENT = map(committed, STUDIES)
PAIRS = ("model_pairs", "ablation", "normalization_pairs")


def pairs_of(study):
    return pd.concat([study.table(name) for name in PAIRS]).set_index("run")


def ladder(study, run, place, column="auc"):
    table = study.table("external_validation").set_index(["run", "test"])
    return table.loc[(run, place), column]


def both(run):
    return [f"{ladder(EMBEDDED, run, place):.2f}" for place in ("internal", "AMBL")]


def cells_after(header):
    """The rows of the README's table that begins so."""
    text = (TOP / "README.md").read_text("utf-8").partition(header)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def signed(*values, digits=2):
    return " to ".join(f"{value:+.{digits}f}" for value in values).replace("-", "−")


def percent(*values):
    return " to ".join(f"{100 * value:.0f}" for value in values).replace("-", "−")


def test_the_first_lines_say_what_the_embedded_study_found():
    row = EMBEDDED.table("model_comparison").set_index("run").loc[EMBEDDED.reference]
    said = f"AUC of {row['auc']:.2f} (95 % interval {row['low']:.2f} to {row['high']:.2f})"
    assert f"On {row['patients']} of them THDA tells HER2+ from HER2− with an {said}" in README
    pairs = pairs_of(EMBEDDED)
    assert set(pairs.loc[["thda_plain", "thda-n4"], "verdict"]) == {"no difference detected"}
    assert "higher than the reference" not in set(pairs["verdict"])
    assert pairs.loc["lesion_first_order-none-raw", "difference"] > 0


def test_the_instruments_table_is_that_of_its_pairs():
    pairs, told = pairs_of(INSTRUMENT), cells_after("| on the instrument |")
    assert len(told) >= 15
    for name, _, difference, verdict, detectable in told:
        row = pairs.loc[name.strip("`")]
        said = f"{signed(row['difference'], digits=3)} ({signed(row['low'], row['high'], digits=3)})"
        assert (difference, verdict, detectable) == (said, row["verdict"], f"{row['detectable']:.3f}"), name


def test_what_more_phantoms_decide_is_told_first():
    pairs = pairs_of(INSTRUMENT)
    regression, others = pairs.loc["lesion_first_order-none-raw"], ["thda_plain", "thda-n4", "resnet34_rgb", "vit"]
    assert regression["verdict"] == "higher than the reference"
    assert f"the outlined lesion is higher than THDA, by {regression['difference']:.2f}, and" in README
    assert set(pairs.loc[others, "verdict"]) == {"no difference detected"}
    found = pairs.loc[others, "detectable"]
    assert f"although {found.min():.2f} to {found.max():.2f} would have been found with a power of 80 %" in README


def test_what_a_test_set_can_decide_is_what_the_instruments_tables_say():
    width = INSTRUMENT.table("expected_width").set_index(["group", "auc"])
    power = INSTRUMENT.table("detectable").set_index(["group", "seeds"])
    names = {"AMBL (lesions)": "AMBL", "I-SPY, published test split": "I-SPY test"}
    told = cells_after("| test set | patients (HER2+) |")
    assert len(told) == 4
    for words, count, half, *detectable in told:
        expected = width.loc[(names.get(words, words), 0.74)]
        assert count == f"{expected['patients']:,.0f} ({expected['positives']:.0f})"
        assert half == f"{expected['half_width']:.2f}"
        found = [power.loc[(names.get(words, words), seeds)] for seeds in (3, 10)]
        said = [f"{row['detectable']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})" for row in found]
        assert detectable == said
    low, high = width.loc[("AMBL", 0.66), ["low", "high"]]
    assert f"on AMBL's 43 lesions is {low:.2f} to {high:.2f}, which holds 0.5" in README and low < 0.5 < high


def test_what_the_phantom_allows_is_what_it_was_made_for_and_what_its_rung_reaches():
    best = ladder(EMBEDDED, "truth_parameters-none-raw", "internal")
    latent = PARAMS["acquire"]["bayes_auc"]
    assert f"of the latent {latent:.2f} here" in README
    assert f"of all that the picture shows of it {best:.2f}" in README
    patients = sum(sum(PARAMS["acquire"][name]) for name in ("spy2", "spy1"))
    patients += PARAMS["acquire"]["ambl"] + PARAMS["acquire"]["unknown_her2"]
    assert f"writes {patients:,} synthetic patients" in README


def test_the_window_of_the_reference_is_the_best_of_the_papers_on_validation_patients():
    named = ("channel_q98", "channel_q95", "global_q99", "slice_minmax", "global_minmax")
    found = {run: EMBEDDED.aucs(run, "validation").mean() for run in (f"thda-{window}-raw" for window in named)}
    assert max(found, key=found.get) == EMBEDDED.reference


def test_each_transformer_has_the_best_of_five_learning_rates_over_three_seeds():
    table = EMBEDDED.table("tuning")
    for model in ("vit", "cvt"):
        own = table[table["run"] == model].groupby("lr")["kept"]
        assert own.size().tolist() == [3] * 5
        assert own.mean().idxmax() == PARAMS["train"]["of"][model]["lr"]


def test_what_so_small_a_study_can_see_is_what_its_tables_say():
    now = {row[0]: row[2] for row in cells_after("| | 32 pixels, before |")}
    reference, plain = EMBEDDED.reference, EMBEDDED.table("ablation").set_index("run").loc["thda_plain"]
    auc, without = both(reference)[0], both("thda_plain")[0]
    assert now["THDA, and without attention"] == f"{auc}, {without}: {plain['verdict']}"
    inside = [study.table("attention").set_index("networks") for study in (EMBEDDED, INSTRUMENT)]
    (small, large) = (100 * table.loc["trained minus chance", ["inside_lesion", "low", "high"]] for table in inside)
    maps = {f"{table.loc['Grad-CAM minus chance', 'inside_lesion']:+.0%}".replace("%", " %") for table in inside}
    said = f"{signed(small.iloc[0], digits=1)} % ({signed(*small.iloc[1:], digits=1)} %), in the instrument "
    said += (
        f"{signed(large.iloc[0], digits=1)} % ({signed(*large.iloc[1:], digits=1)} %), each over the patients of "
    )
    said += f"its own networks: not the same from study to study; class-activation maps {maps.pop()} in both"
    assert now["attention inside the lesion less that by chance"] == said and not maps
    regression, best = both("lesion_first_order-none-raw"), both("truth_parameters-none-raw")
    assert now["first-order numbers of the lesion, internal and external"] == ", ".join(regression)
    assert now["the exact posterior, internal and external"] == ", ".join(best)
    n4 = pairs_of(EMBEDDED).loc["thda-n4"]
    assert now["THDA after N4 less THDA"] == f"{signed(n4['difference'])} ({signed(n4['low'], n4['high'])})"
    q98 = EMBEDDED.table("clipping").set_index("window").loc["channel_q98"]
    turns = "THDA under `channel_q98`, and how much of the lesion that window turns white"
    assert now[turns] == f"{q98['auc']:.2f}, {percent(q98['white'])} %"
    ensemble = EMBEDDED.metrics["internal"]["ensemble"]["auc"]
    assert now["averaged probabilities, a number of their own"] == f"{ensemble:.2f}"
    fidelity = EMBEDDED.table("n4_fidelity").query("kept == 'whole'")["r"]
    field = "N4 and the true field of twelve phantoms: median r, lowest"
    assert (now[field], len(fidelity)) == (f"{fidelity.median():.2f}, {fidelity.min():.2f}", 12)
    row = EMBEDDED.table("detectable").iloc[0]
    power = "difference between networks that is found with a power of 80 %"
    assert now[power] == f"{row['lowest']:.2f} to {row['highest']:.2f}, median {row['detectable']:.2f}"
    assert len(now) == 9


def test_how_windows_clip_is_said_by_their_tables():
    table = EMBEDDED.table("clipping")
    r = signed(stats.pearsonr(table["white"], table["auc"]).statistic)
    assert len(table) == 7 and "Over the seven windows the AUC falls" in README and f"(r = {r})" in README
    real = pd.read_csv(TOP / "her2core/report/figures/real_lesions.csv")["above_q98"]
    assert f"in four real slices {percent(real.min(), real.max())} % of the lesion lie above" in README
    sites = EMBEDDED.table("clipping_sites").query("window == 'channel_q98'")["median"].sort_values()
    first, second, third = (percent(share) for share in sites)
    assert f"in the phantom's sites {first}, {second} and {third} % in the median" in README


def test_how_many_patients_a_difference_takes_follows_from_the_pairs_of_networks():
    """A quarter of them positive, as in I-SPY, to the next hundred; with three seeds not even endlessly many."""

    def median(study, patients, seeds):
        return np.median(study.detectable(round(0.26 * patients), patients, seeds))

    found = re.search(r"a difference of 0.03 takes ten seeds and about (\d+) test patients, or (\d+) by", README)
    for study, needed in zip((EMBEDDED, INSTRUMENT), map(int, found.groups()), strict=True):
        assert median(study, needed, 10) <= 0.03 < median(study, needed - 100, 10)
    assert "with three seeds no number of patients is enough" in README and median(EMBEDDED, 10**7, 3) > 0.03


def test_what_the_instrument_is_and_finds_is_said_by_its_tables():
    row, auc = INSTRUMENT.table("detectable").iloc[1], INSTRUMENT.table("normalization_study").set_index("run")
    internal, external = (INSTRUMENT.metrics["internal"], INSTRUMENT.metrics["external"]["AMBL"])
    count = f"{internal['patients']:,} internal and {external['patients']} external test patients"
    runs = {path.stem for path in INSTRUMENT.results.glob("predictions/*.csv")}
    seeds = INSTRUMENT.table("external_validation").set_index("run")["seeds"].loc[sorted(runs)]
    assert f"{count}, ten seeds (five for some open choices), {len(runs)} runs" in README
    assert set(seeds) == {5, 10} and (row["patients"], row["seeds"]) == (internal["patients"], 10)
    assert f"difference between networks of {row['detectable']:.3f} in the median" in README
    own = auc.loc[INSTRUMENT.reference]
    assert f"THDA reaches {own['auc']:.3f} ({own['low']:.3f} to {own['high']:.3f}) there" in README


def test_what_attention_n4_windows_and_the_regression_are_worth_on_the_instrument():
    pairs, colours, regression = pairs_of(INSTRUMENT), "thda_rgb", "lesion_first_order-none-raw"
    worth = f"leave room for a gain by attention of {-pairs.loc['thda_plain', 'low']:.3f} at most, "
    assert worth + f"and by N4 of {pairs.loc['thda-n4', 'high']:.3f}; under other windows and sizes" in README
    networks = [path.stem for path in INSTRUMENT.results.glob("predictions/*.csv")]
    inside = {run: ladder(INSTRUMENT, run, "internal") for run in (*networks, regression)}
    assert max(inside, key=inside.get) == regression
    outside = [f"{ladder(INSTRUMENT, run, 'AMBL'):.2f}" for run in (colours, regression)]
    assert f"colours in every head has {outside[0]} to its {outside[1]}." in README
    share = INSTRUMENT.table("clipping").set_index("window")["white"]
    told = re.search(r"Windows that turn (\d+) % of the lesion or more white cost (\d\.\d+) to (\d\.\d+)", README)
    white = share[share > 0.01]
    cost = -pairs.loc[[f"thda-{window}-raw" for window in white.index], "difference"]
    assert told.groups() == (percent(white.min()), f"{cost.min():.2f}", f"{cost.max():.2f}")


def test_the_four_questions_are_answered_as_their_table_says():
    table = pd.read_csv(TOP / "results/instrument/question_effects.csv").set_index(["study", "run", "against"])
    minmax, q98, plain = "thda-global_minmax", "thda-channel_q98", "thda_plain"

    def row(study, run, against):
        return table.loc[(study, run, against)]

    def said(*arms):
        found = row(*arms)
        return f"{signed(found['difference'])} ({signed(found['low'], found['high'])}"

    none, once, twice = (f"shading_{how}" for how in ("none", "once", "twice"))
    assert f"usual shading costs {said(once, f'{q98}-raw', f'{none} {q98}-raw')})" in README
    assert f"N4 gives {said(once, f'{q98}-n4', f'{once} {q98}-raw')}) back" in README
    assert f"the cost is {said(twice, f'{q98}-raw', f'{none} {q98}-raw')})" in README
    assert f"of the {said(twice, f'{q98}-n4', f'{twice} {q98}-raw')}) that is left nothing is detected" in README

    def apart(study, window, less, other):  # what N4 gains less what it gains elsewhere
        arms = f"{study} {window}-raw", f"{less} {other}-n4", f"{less} {other}-raw"
        return study, f"{window}-n4", "; ".join(arms)

    more, fewer, clipped = apart(once, q98, none, q98), apart(twice, q98, once, q98), apart(once, q98, once, minmax)
    assert f"back, {said(*more)}) more than where there is no shading" in README
    size, *ends = (f"{abs(row(*fewer)[name]):.2f}" for name in ("difference", "high", "low"))
    assert f"gives back {size} ({' to '.join(ends)}) less than with the usual" in README
    size, *ends = (f"{row(*clipped)[name]:.2f}" for name in ("difference", "low", "high"))
    assert f"under `channel_q98`, by {size} ({' to '.join(ends)}), does not hold after correction" in README
    assert [row(*arms)["verdict"] for arms in (more, fewer, clipped)] == [
        "higher than the reference",
        "lower than the reference",
        "not after correction",
    ]
    usual = row(once, f"{minmax}-n4", f"{once} {minmax}-raw")
    ends = f"({signed(usual['difference'])}, {signed(usual['low'], usual['high'])}: a gain of 0.05 is not excluded)"
    assert f"without shading, with it {ends} or with twice as much" in README and f"{usual['high']:.2f}" == "0.05"
    undetected = [row(s, f"{minmax}-n4", f"{s} {minmax}-raw") for s in (none, once, twice)]
    undetected += [row(twice, f"{q98}-n4", f"{twice} {q98}-raw")]
    more = [f"thda_of{n}" for n in (75, 150, 300)] + [f"{minmax}-raw"]
    first, second, third = (("many_patients", b, f"many_patients {a}") for a, b in pairwise(more))
    assert f"to 150 {said(*first)}), to 300 another {said(*second)}; not after correction)" in README
    assert f"to 600 another {said(*third)}; no difference detected)" in README
    assert [row(*arms)["verdict"] for arms in (first, second)] == [
        "higher than the reference",
        "not after correction",
    ]
    sizes = {px: (s, f"{minmax}-raw", f"{s} {plain}") for px, s in ((32, "px_32"), (48, once), (64, "px_64"))}
    attention = ", ".join(f"{said(*arms)}) at {px}" for px, arms in sizes.items()).replace("at 32", "at 32 pixels")
    assert attention in README
    larger = ("px_64", f"{minmax}-raw", f"{once} {minmax}-raw")
    assert f"THDA itself gains {said(*larger)}) from 48" in README
    undetected += [row(*third), *(row(*arms) for arms in sizes.values())]
    assert {found["verdict"] for found in undetected} == {"no difference detected"}
    costs = [row(s, f"{q98}-raw", f"{none} {q98}-raw")["verdict"] for s in (once, twice)]
    assert costs == ["lower than the reference"] * 2 and row(*larger)["verdict"] == "higher than the reference"
    weak = table.loc["weak_label"]
    assert set(weak["verdict"]) <= {"no difference detected", "not after correction"} and len(weak) == 4
    most = weak["detectable_holm"]  # of the correction that the verdict takes
    assert f"with a power of 80 % {most.min():.2f} to {most.max():.2f} would have been" in README
    auc = pd.read_csv(TOP / "results/instrument/question_aucs.csv").set_index(["study", "run"])
    auc = auc.loc[("weak_label", f"{minmax}-raw")]
    assert f"take THDA to {auc['auc']:.2f} ({auc['low']:.2f} to {auc['high']:.2f})" in README
