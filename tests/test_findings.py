"""The sentences say what the tables say, word for word, and leave out what no table says."""

import json
import re

import pandas as pd
import pytest
from house import STAGES, TOP

from her2core.config import ENDPOINTS, Study, Title
from her2core.report import findings
from her2core.report.documents import flow_in_use
from her2core.report.figures.words import model_name, window_name

RESULTS = TOP / "results/embedded"
THDA = "thda-global_minmax-raw"
TITLE = Title("toy cohort")
PHANTOM = "These are phantoms: "


def run(name, auc, low, high, model="thda", window="global_minmax", bias_field="raw", collapsed=0, **more):
    values = {"run": name, "model": model, "window": window, "bias_field": bias_field, "auc": auc, "low": low}
    values |= {"high": high, "lowest_seed": low, "highest_seed": high, "seeds": 2, "patients": 40, "positives": 10}
    return values | {"collapsed_seeds": collapsed} | more


def pair(name, difference, low, high, verdict, reference=THDA):
    values = {"run": name, "reference": reference, "difference": difference, "low": low, "high": high}
    return values | {"detectable": 0.07, "verdict": verdict}


def tables(**rows):
    return {name: pd.DataFrame(found) for name, found in rows.items()}


REACHED = (
    "Under a matched protocol, window min–max over phases, THDA, the reference, reaches an AUC of 0.80 "
    "(0.70–0.90) on the internal test (n = 40, 10 HER2+, 2 seeds)."
)


def test_what_stands_above_thda_follows_its_auc_with_the_verdict_and_then_the_others_by_theirs():
    found = tables(
        model_comparison=[run(THDA, 0.8, 0.7, 0.9), run("vit", 0.7, 0.6, 0.8, "vit")],
        model_pairs=[
            pair("vit", -0.1, -0.15, -0.05, "lower than the reference"),
            pair("cvt", -0.06, -0.1, -0.001, "not after correction"),
            pair("kinetics-none-raw", 0.0, -0.05, 0.05, "no difference detected"),
            pair("resnet34_rgb", 0.041, -0.001, 0.083, "no difference detected"),
            pair("lesion_first_order-none-raw", 0.09, 0.03, 0.15, "higher than the reference"),
            pair("clinical-none-raw", 0.05, 0.001, 0.1, "not after correction"),
        ],
    )
    assert findings.of_models(found, THDA, TITLE, synthetic=False) == (
        f"**Answer.** {REACHED} 3 of 6 other models have a higher AUC than THDA: regression on the outlined "
        "lesion +0.09 (+0.03 to +0.15), higher than the reference; regression on clinical data +0.05 (+0.00 to "
        "+0.10), not after correction; ResNet-34 on RGB +0.04 (−0.00 to +0.08; detectable 0.07), no difference "
        "detected. "
        "Lower than the reference: ViT −0.10 (−0.15 to −0.05). Not after correction: CvT −0.06 (−0.10 to −0.00). "
        "No difference detected: regression on size and kinetics +0.00 (−0.05 to +0.05; detectable 0.07)."
    )


def test_where_nothing_stands_above_thda_this_is_said():
    found = tables(model_pairs=[pair("vit", -0.1, -0.2, 0.01, "no difference detected")])
    assert findings.of_models(found, THDA, TITLE, synthetic=False) == (
        "**Answer.** None of 1 other model has a higher AUC than THDA. "
        "No difference detected: ViT −0.10 (−0.20 to +0.01; detectable 0.07)."
    )


def test_a_single_comparison_is_named_and_the_phantom_speaks_of_no_patient():
    found = tables(
        increment=[
            pair(
                "clinical_kinetics+thda-none-raw", 0.06, 0.01, 0.1, "higher than the reference", "kinetics-none-raw"
            )
        ],
        ablation=[
            pair("thda_plain", -0.1, -0.15, -0.05, "lower than the reference"),
            pair("aggregate_mean", 0.004, -0.01, 0.02, "no difference detected"),
            pair("thda_own_idea", -0.012, -0.03, 0.01, "no difference detected"),
        ],
    )
    assert findings.of_models(found, THDA, TITLE, synthetic=True) == (
        "**Answer.** To size and kinetics THDA adds +0.06 (+0.01 to +0.10), higher than without. "
        "Open choices taken otherwise: THDA without attention −0.10 (−0.15 to −0.05), lower than the reference. "
        "Open choices taken otherwise, no difference detected: mean over slices +0.00 (−0.01 to +0.02; detectable "
        "0.07); THDA, own idea −0.01 (−0.03 to +0.01; detectable 0.07). "
        "These are phantoms: small networks trained from scratch on them say nothing of transformers, and none of "
        "this of patients."
    )


def test_collapsed_networks_are_named_beside_their_comparisons_and_the_prevalence_is_not():
    rows = [run(THDA, 0.5, 0.5, 0.5, collapsed=2), run("vit", 0.6, 0.4, 0.7, "vit", collapsed=1)]
    rows += [run("majority-none-raw", 0.5, 0.5, 0.5, "majority", "none", collapsed=2)]
    found = tables(
        model_comparison=rows, model_pairs=[pair("majority-none-raw", 0.0, 0.0, 0.0, "no difference detected")]
    )
    text = findings.of_models(found, THDA, TITLE, synthetic=False)
    assert "THDA, the reference, reaches an AUC of 0.50, all scores tied on the internal test" in text
    assert "No difference detected: the same risk for everybody +0.00 (no spread; detectable 0.07)." in text
    assert text.endswith(
        "Collapsed to one probability for all, so that comparisons say little: THDA, 2 of 2 seeds; ViT, 1 of 2 "
        "seeds."
    )


def test_windows_and_n4_are_told_apart_and_the_share_that_is_white_beside_the_auc():
    found = tables(
        normalization_study=[
            run(THDA, 0.8, 0.7, 0.9),
            run("thda-channel_q98-raw", 0.7, 0.6, 0.8, window="channel_q98"),
            run("thda-channel_q98-n4", 0.85, 0.7, 0.9, window="channel_q98", bias_field="n4"),
            run("thda-n4", 0.78, 0.7, 0.9, bias_field="n4"),
        ],
        normalization_pairs=[
            pair("thda-channel_q98-raw", -0.1, -0.2, -0.01, "lower than the reference"),
            pair("thda-channel_q98-n4", 0.05, -0.02, 0.12, "no difference detected"),
            pair("thda-n4", -0.02, -0.05, 0.01, "no difference detected"),
        ],
        clipping=[{"window": w, "white": x, "auc": 0.8 - x / 2} for w, x in zip("abc", (0, 0.1, 0.4), strict=True)],
    )
    assert findings.of_windows(found, THDA, TITLE, synthetic=False) == (
        f"**Answer.** {REACHED} 1 of 2 other windows has a higher AUC than THDA: 98 % per phase after N4 +0.05 "
        "(−0.02 to +0.12; detectable 0.07), no difference detected. Lower than the reference: 98 % per phase −0.10 "
        "(−0.20 to −0.01). N4 changes the AUC by −0.02 (−0.05 to +0.01; detectable 0.07), no difference detected. "
        "Windows turn 0 % (AUC 0.80) to 40 % (AUC 0.60) of the lesion white; r = −1.00 with the AUC over 3 windows."
    )


def test_a_study_of_one_window_compares_none():
    found = tables(normalization_study=[run(THDA, 0.8, 0.7, 0.9)], normalization_pairs=[])
    assert findings.of_windows(found, THDA, TITLE, synthetic=False) == f"**Answer.** {REACHED}"


def ladder(*tests):
    rows = []
    for test, shift in tests:
        rows += [
            run("lesion_first_order-none-raw", 0.75 + shift, 0.7, 0.95, "lesion_first_order", "none", test=test),
            run(THDA, 0.8, 0.7, 0.9, test=test),
            run("vit", 0.7, 0.6, 0.8, "vit", test=test),
            run("thda-channel_q98-raw", 0.65, 0.5, 0.7, window="channel_q98", test=test),
            run("thda-slice_minmax-raw", 0.6, 0.5, 0.7, window="slice_minmax", test=test),
            run("majority-none-raw", 0.5, 0.5, 0.5, "majority", "none", test=test),
        ]
    return rows


def test_each_external_site_has_a_sentence_of_its_own():
    found = tables(
        external_validation=ladder(("internal", 0.0), ("AMBL", 0.1), ("Duke", 0.0), ("Duke, left out", 0))
    )
    below = "ViT 0.70 (0.60–0.80); other windows 0.60 to 0.65."
    assert findings.of_sites(found, THDA, TITLE, synthetic=False) == (
        "**Answer.** At AMBL (n = 40, 10 HER2+) THDA reaches 0.80 (0.70–0.90); 1 of 4 other runs above that, "
        f"without a test: regression on the outlined lesion 0.85 (0.70–0.95). Not above: {below} "
        "At Duke (n = 40, 10 HER2+) THDA reaches 0.80 (0.70–0.90); none of 4 other runs above that. "
        f"Not above: regression on the outlined lesion 0.75 (0.70–0.95); {below}"
    )


def test_without_an_external_site_nothing_is_said_of_another_hospital():
    found = tables(external_validation=ladder(("internal", 0.0)))
    assert findings.of_sites(found, THDA, TITLE, synthetic=False) == (
        "**Answer.** There is no external site: what is left of the AUC at another hospital this study cannot say."
    )


def test_on_a_phantom_the_best_that_anybody_could_do_is_known():
    best = run("truth_parameters-none-raw", 0.9, 0.8, 0.95, "truth_parameters", "none", test="internal")
    text = findings.of_sites(tables(external_validation=[*ladder(("internal", 0)), best]), THDA, TITLE, True)
    assert "THDA's part of the way there from 0.5: internal 0.90 (0.80–0.95), 75 %." in text
    assert "what another hospital would find they cannot say" in text


@pytest.mark.parametrize(
    ("intercept", "slope", "said"),
    [
        ((0.1, -0.2, 0.4), (1.1, 0.9, 1.3), "no error detected"),
        ((0.5, 0.2, 0.8), (0.6, 0.4, 0.9), "too low and too extreme"),
        ((-0.5, -0.8, -0.2), (2, 1.1, 3), "too high and too close to the average"),
    ],
)
def test_probabilities_are_called_wrong_only_where_an_interval_says_so(intercept, slope, said):
    row = {"test": "AMBL", "run": THDA, "probabilities": "raw"}
    for part, values in {"intercept": intercept, "slope": slope}.items():
        row |= dict(zip((part, f"{part}_low", f"{part}_high"), values, strict=True))
    found = tables(calibration=[row, row | {"run": "vit"}, row | {"probabilities": "recalibrated"}])
    text = findings.of_sites(found, THDA, TITLE, synthetic=False)
    assert text.startswith(f"**Answer.** THDA's averaged probabilities: AMBL {said}, intercept ")
    unknown = tables(calibration=[row | {"slope": None}])  # no line fits
    assert findings.of_sites(unknown, THDA, TITLE, synthetic=False) == "**Answer.**"


def test_gaps_between_groups_and_attention_stand_beside_chance():
    found = tables(
        fairness=[{"test": "AMBL", "variable": "age", "p": 0.04}, {"test": "AMBL", "variable": "site", "p": 0.5}],
        attention=[
            {"networks": who, "inside_lesion": share, "patients": 9}
            for who, share in {"trained": 0.24, "randomised": 0.229, "chance": 0.2}.items()
        ],
    )
    assert findings.of_sites(found, THDA, TITLE, synthetic=False) == (
        "**Answer.** Groups differ in sensitivity and false positives by more than chance in 1 of 2 gaps, by p < "
        "0.05 without correction: age (AMBL, p = 0.040). "
        "Attention inside the lesion, mean of 9 patients, interval over these alone: trained 24.0 %; untrained "
        "22.9 %; chance 20.0 %."
    )


def test_attention_has_its_interval_where_the_table_has_one():
    shares = {"trained": 0.24, "chance": 0.2, "trained minus chance": 0.04}
    rows = [{"networks": n, "inside_lesion": s, "low": s - 0.03, "high": s + 0.03} for n, s in shares.items()]
    found = {"attention": pd.DataFrame(rows).assign(patients=9)}
    assert findings.of_sites(found, THDA, TITLE, synthetic=False) == (
        "**Answer.** Attention inside the lesion, mean of 9 patients, interval over these alone: trained 24.0 % "
        "(21.0 % to 27.0 %); chance 20.0 % (17.0 % to 23.0 %); trained minus chance 4.0 % (1.0 % to 7.0 %)."
    )


COUNTS = {
    "patients": 60,
    "excluded": {"pCR unknown": 3},
    "splits": {"folds": {"patients": 50, "positives": 20}, "external": {"patients": 7, "positives": 2}},
}


def test_who_is_in_of_another_endpoint_and_under_folds():
    title = Title("toy cohort")
    title.endpoint = ENDPOINTS["pcr"]
    width = {"patients": 50, "auc": 0.74, "low": 0.6, "high": 0.88}
    found = tables(expected_width=[{"group": "folds"} | width, {"group": "Duke"} | width])
    assert findings.of_cohort(found, COUNTS, title, synthetic=False) == (
        "**Answer.** 57 of 60 patients are in use, 22 of them pCR: folds 50, external 7. Out: pCR unknown 3. "
        "Interval to expect around a true AUC of 0.74: 0.60 to 0.88 (folds, n = 50)."
    )


def test_the_phantoms_field_has_a_median_and_a_range_for_each_part():
    found = tables(n4_fidelity=[{"kept": k, "r": r} for k, r in (("whole", 0.8), ("whole", 0.9), ("31 mm", 0.7))])
    assert "whole 0.85 (0.80 to 0.90, n = 2); 31 mm 0.70 (0.70 to 0.70, n = 1)." in findings.of_phantom(found)


def test_what_is_prepared_is_told_with_quartiles():
    rows = [("enhancement around it", 0.1, 0.2, 0.3), ("white under global_q99", 0, 0.1, 0.5)]
    columns = ["measured", "q1", "median", "q3"]
    found = {"preparation_seen": pd.DataFrame(rows, columns=columns).assign(patients=5)}
    assert findings.of_preparation(found, synthetic=False) == (
        "**Answer.** Median and quartiles of 5 training patients: enhancement around it 20 % (10 % to 30 %); "
        "white under 99 % over phases 10 % (0 % to 50 %)."
    )


def test_only_changes_larger_than_mirroring_are_told_of_a_slice():
    change = {"as it is": 0.0, "lesion blank": -0.3, "early blank": 0.01, "late blank": 0.1, "mirrored": -0.02}
    answers = pd.DataFrame({"change": change}).assign(probability=lambda rows: 0.7 + rows["change"])
    shares = {"trained": 0.3, "randomised": 0.2, "chance": 0.1}
    assert findings.of_network(answers, shares, synthetic=False) == (
        "**Answer.** The slice has a probability of 0.70; mirroring it, which should change nothing, adds −0.02, "
        "and 2 of 3 other changes more than that: lesion blank −0.30; late blank +0.10. Attention inside the "
        "lesion, this slice: trained 30.0 %; untrained 20.0 %; chance 10.0 %. One slice shows what happens, not "
        "whether it always does."
    )


@pytest.mark.parametrize(("synthetic", "count"), [(True, 1), (False, 0)])
def test_the_summary_of_a_study_with_one_table_has_the_lines_that_this_table_answers(synthetic, count):
    text = findings.of_study({}, COUNTS, THDA, TITLE, synthetic, 0.95)
    assert text.startswith("**HER2 status, toy cohort.** AUC: mean of seeds, 95 % interval over patients;")
    asked = re.findall(r"^- \*\*(.+?)\*\*", text, flags=re.M)
    assert asked == ["What does it not mean?", "How sure is that?", "Who is in?"]
    assert text.count(PHANTOM) == count
    assert text.count("It says nothing of other patients, sites and ways of training than these.") == 1 - count


def test_tables_that_are_missing_or_have_no_rows_are_left_out(tmp_path):
    (tmp_path / "increment.csv").write_text("\n")
    (tmp_path / "detectable.csv").write_text('""\n')
    (tmp_path / "fairness.csv").write_text("test,variable,p\n")
    (tmp_path / "elsewhere.csv").write_text("a\n1\n")
    found = findings.tables_of(tmp_path)
    assert set(found) == {"fairness"} and findings.of_sites(found, THDA, TITLE, False) == "**Answer.**"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("channel_q98", "98 % per phase"),
        ("global_q02_q995", "2 to 99.5 % over phases"),
        ("slice_minmax", "min–max per slice"),
        ("channel_nyul", "Nyúl per phase"),
    ],
)
def test_a_window_has_a_name_in_words(name, said):
    assert window_name(name) == said


def test_a_model_has_a_name_in_words_and_two_together_have_both():
    assert model_name("thda-n4") == "THDA" and model_name("thda_third-n4") == "THDA, third"
    assert model_name("clinical_kinetics+thda-none-raw") == "THDA with size, kinetics and clinical data"


def test_the_stage_report_depends_on_every_table_that_the_summary_reads():
    read = {f"results/${{name}}/{name}.csv" for name in findings.TABLES}
    assert read <= set(STAGES["report"]["deps"])


def test_the_committed_summary_is_that_of_the_committed_tables_with_a_line_for_each_question():
    study, reference = Study.open("embedded"), json.loads((RESULTS / "metrics.json").read_text())["reference"]
    found, flow = findings.tables_of(RESULTS), flow_in_use(RESULTS)
    text = findings.of_study(found, flow, reference, study.title, True, study.section("evaluate")["confidence"])
    assert (RESULTS / "summary.md").read_text() == text
    first, _, rest = text.partition("\nIn detail:\n")
    assert re.findall(r"^- \*\*(.+?)\*\*", first, flags=re.M) == [*findings.FIRST]
    assert len(first.split()) < 220 and rest.count("\n- ") == 8 and PHANTOM in first


def verdicts_of(rows):
    """Every difference of a table in the words of the summary, with its verdict."""
    for _, row in rows.iterrows():
        yield f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}".replace("-", "−"), row["verdict"]


def test_every_committed_difference_stands_in_the_summary_under_its_own_verdict():
    text = (RESULTS / "summary.md").read_text()
    for name in ("model_pairs", "normalization_pairs", "increment"):
        for numbers, verdict in verdicts_of(pd.read_csv(RESULTS / f"{name}.csv")):
            before, found, after = text.partition(numbers)
            assert found, numbers
            sentence = before.rpartition(". ")[2] + found + after.partition(". ")[0]
            word = "higher than" if verdict.startswith("higher") else verdict
            assert word in sentence.lower(), numbers


def test_the_readme_opens_with_the_first_answers_word_for_word():
    told = (TOP / "README.md").read_text().partition("## What was found\n")[2].split()
    summary = (RESULTS / "summary.md").read_text().partition("In detail:")[0].split()
    assert told[: len(summary)] == summary, "copy the head of results/embedded/summary.md into the README"
