"""`her2 export`: a folder that the study is not needed for, by this package, plain torch and ONNX."""

import ast
import hashlib
import json
import pickle
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from bare import make_bare, run_bare
from house import TOP
from safetensors.torch import load_file, save_file
from small_study import compute

from her2core import study as command
from her2core.baselines import CvtConfig, ModelConfig, VitConfig, build_model
from her2core.calibration import fit_recalibration_or_none, recalibrate, youden_threshold
from her2core.case import View, read_case
from her2core.config import Study
from her2core.evaluate import applied, calls, read_predictions
from her2core.model import ThdaConfig
from her2core.preprocess import PrepareConfig, pack
from her2core.records import read_digests
from her2core.report import export, frozen, one_case
from her2core.report.standalone import network_source
from her2core.runs import Run

RUN = "thda-global_minmax-raw"
CASE = TOP / "data/sample/acquire/ambl/PHANTOM-AMBL-0921"
EXTERNAL = "PHANTOM-AMBL-0015"
VARIANTS = {"separate": {"share_weights": False}, "rgb": {"head_input": "rgb_fused", "share_weights": False}}
VARIANTS |= {"adjacent": {"head_input": "adjacent_slices"}, "weighted": {"fusion": "attention"}}
MODELS = ModelConfig(
    ThdaConfig(width=8, blocks=(1, 2, 1, 1)),
    VitConfig(8, 32, 2, 2, 64),
    CvtConfig((5, 3, 3), (3, 2, 2), (8, 12, 24), (1, 3, 6), (1, 2, 3)),
    VARIANTS,
)


@pytest.fixture
def sample(monkeypatch):
    monkeypatch.chdir(TOP)
    return Study.open("sample")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The sample's reference, as the command exports it."""
    folder = tmp_path_factory.mktemp("exports") / "a model"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOP)
        command.main(["export", RUN, "--cohort", "sample", "--to", str(folder), "--onnx"])
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    top = tmp_path_factory.mktemp("compendium")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        yield compute(top)


@pytest.fixture
def small(computed, monkeypatch):
    """A small study of two seeds, and its folder as working directory."""
    monkeypatch.chdir(computed.top)
    return computed


def sealed(folder):
    """The folder with the digests of what lies there now."""
    (folder / "SHA256SUMS").unlink()
    (folder / "SHA256SUMS").write_text(export._sums(folder))
    return folder


def blocks_of(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), flags=re.S)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------ what is in the folder


def test_the_weights_are_those_that_training_froze_byte_for_byte(sample, exported):
    known = read_digests(sample.results / f"weights/{RUN}.csv", "")
    assert {path.name: digest(path) for path in exported.glob("*.safetensors")} == known
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    others = sorted(path for path in exported.iterdir() if path.name != "SHA256SUMS")
    assert lines == [f"{digest(path)}  {path.name}" for path in others] and len(lines) == 7


def test_the_same_run_gives_the_same_bytes(sample, exported, tmp_path):
    export.write_model(sample, RUN, tmp_path / "again", onnx=True)
    assert (tmp_path / "again/SHA256SUMS").read_bytes() == (exported / "SHA256SUMS").read_bytes()


def test_nothing_in_it_says_where_it_was_made(exported):
    places = [str(TOP).encode(), str(Path(sys.prefix)).encode(), str(exported.parent).encode(), b"site-packages"]
    assert [p.name for p in exported.iterdir() if any(place in p.read_bytes() for place in places)] == []


def test_settings_and_what_an_answer_is_held_against_come_along(sample, exported):
    found, run = frozen.read_model(exported), Run.of(sample)
    assert str(found.title) == "sample synthetic cohort" and found.title.endpoint == sample.title.endpoint
    assert ThdaConfig(**found.described.architecture) == run.models.thda and found.described.run == RUN
    config = sample.params("prepare", PrepareConfig)
    ours = found.preprocessing.config
    assert all(getattr(ours, k) == getattr(config, k) for k in ("crop_mm", "crop_px", "slices", "quantiles", "n4"))
    assert found.preprocessing.view == View.of(run) and found.preprocessing.cut is None
    predicted = read_predictions([sample.results / f"predictions/{RUN}.csv"])
    test = predicted[predicted["split"] == "test"]
    assert sorted(zip(test["label"], test["probability"], strict=True)) == list(found.comparison.scores)
    assert not any(patient in (exported / "comparison.json").read_text() for patient in predicted["patient"])


# ------------------------------------------------------------------------------------------ plain torch


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return make_bare(tmp_path_factory.mktemp("bare") / "packages", "torch", "numpy", "safetensors")


def test_the_lines_of_its_readme_predict_as_the_study_where_only_torch_numpy_and_safetensors_are(
    sample, copied, bare
):
    slices, expected = Run.of(sample).slices(), Run.of(sample).predict("validation", "test", "external")
    for patient in expected["patient"]:
        np.save(copied / f"{patient}.npy", slices.images[torch.from_numpy(slices.patient == patient)].numpy())
    code = f"""
import os
for name in ("torchvision", "her2core", "pandas", "scipy", "transformers"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " is here: not a bare environment")
for patient in {list(expected["patient"])!r}:
    os.replace(patient + ".npy", "crops.npy")
    exec({blocks_of(copied)[0]!r})
"""
    said = [line.split() for line in run_bare(bare, code, copied).splitlines()]
    assert [seed for seed, _ in said] == ["0"] * len(expected) and len(expected) >= 8
    np.testing.assert_allclose([float(p) for _, p in said], expected["probability"], atol=1.5e-6, rtol=0)


def test_from_raw_phases_its_lines_come_to_the_answer_that_the_study_gives_of_the_case(sample, copied, bare):
    found = frozen.read_model(copied)
    case = read_case(CASE, found.preprocessing.config)
    _, _, packed = pack(case.phases, case.mask, case.geometry, found.preprocessing.config)
    np.save(copied / "volume.npy", case.phases)
    np.save(copied / "squares.npy", packed["raw"]["images"])
    ten, window = blocks_of(copied)
    seed, probability = run_bare(bare, window + ten, copied).split()
    expected = one_case.examine(sample, CASE).seeds["probability"].item()
    assert (seed, float(probability)) == ("0", pytest.approx(expected, abs=1e-6))


KINDS = ("thda", "resnet34_rgb", "vit", "cvt", "thda_separate", "thda_rgb", "thda_adjacent", "thda_weighted")


def architecture_of(name):
    chosen = {"vit": MODELS.vit, "cvt": MODELS.cvt, "resnet34_rgb": MODELS.thda}
    return chosen[name] if name in chosen else MODELS.thda_of(name)


@pytest.mark.parametrize("name", KINDS)
def test_a_networks_source_imports_no_package_but_torch_and_numpy_and_computes_the_same(name, generator):
    kind = "thda" if name.startswith("thda") else name
    source = network_source(kind, "0.1.0")
    tree = ast.parse(source)
    modules = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in ast.walk(tree)
               if isinstance(n, ast.Import | ast.ImportFrom)}  # fmt: skip
    strangers = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
    assert strangers == {"torch", "numpy"} | ({"transformers"} if kind == "cvt" else set())
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == len(set(defined))
    space = {"__name__": "network"}
    sys.modules["network"] = type(sys)("network")  # where dataclasses look themselves up
    exec(source, space)
    config = {"architecture": json.loads(json.dumps(vars(architecture_of(name)))), "image_px": 32}
    ours, theirs = build_model(name, MODELS, 32).eval(), space["build"](config).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(3, 9 if name == "thda_adjacent" else 3, 32, 32, generator=generator)
    assert torch.equal(ours(x), theirs(x))


# ------------------------------------------------------------------------------------------ ONNX


def test_the_onnx_file_gives_the_studys_probabilities_for_any_number_of_slices(sample, exported):
    session = onnxruntime.InferenceSession(exported / "seed0.onnx")
    run = Run.of(sample)
    slices, expected = run.slices(), run.predict("validation", "test", "external")
    for row in expected.itertuples():
        images = slices.images[torch.from_numpy(slices.patient == row.patient)].numpy()
        (each,) = session.run(["probability"], {"slices": images})
        assert abs(np.median(each) - row.probability) <= 1e-5 and each.shape == (len(images),)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34_rgb", "vit", "cvt", "thda_adjacent")]


@pytest.mark.parametrize("name", ["thda", *SLOW])
def test_every_kind_of_network_becomes_onnx_with_the_same_probabilities(name, generator):
    torch.manual_seed(0)
    network, channels = build_model(name, MODELS, 32).eval(), 9 if name == "thda_adjacent" else 3
    content = export.onnx_bytes(network, channels, 32)
    assert [(o.domain, o.version) for o in onnx.load_from_string(content).opset_import] == [("", 20)]
    session = onnxruntime.InferenceSession(content)
    for count in (1, 7):
        images = torch.randint(0, 256, (count, channels, 32, 32), dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            expected = network(images.float() / 255).sigmoid().numpy()
        (found,) = session.run(None, {"slices": images.numpy()})
        assert np.abs(found - expected).max() <= 1e-5 and found.shape == (count,)


@pytest.mark.slow
def test_separate_heads_would_be_held_to_one_number_of_slices_and_are_refused():
    with pytest.raises(
        ValueError, match="heads with networks of their own: ONNX would hold them to 5 slices; leav"
    ):
        export.onnx_bytes(build_model("thda_separate", MODELS, 32).eval(), 3, 32)


def test_without_its_packages_onnx_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ValueError, match=r"onnxscript is not installed, which ONNX needs; pip install -e .\[export\]"
    ):
        export.onnx_bytes(torch.nn.Identity(), 3, 32)


# ------------------------------------------------------------------------------------------ her2 predict --model


def test_a_folder_answers_a_case_as_its_study_does_to_the_byte_and_outside_any_compendium(
    sample, exported, tmp_path, monkeypatch, capsys
):
    expected = one_case.write_case(one_case.examine(sample, CASE), tmp_path / "by the study")
    monkeypatch.chdir(tmp_path)
    command.main(["predict", str(CASE), "--model", str(exported)])
    said = capsys.readouterr().out
    assert said.startswith("Probability of HER2+: ") and f"written: cases/{CASE.name}/case.png" in said
    found = [tmp_path / "cases" / CASE.name / path.name for path in expected]
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in expected]


def frozen_run(study, name):
    """A run of the small study as if trained, with its predictions."""
    run = Run.of(study, name)
    run.freeze({member: run.fresh(member[0]).state_dict() for member in run.members})
    table = run.predict("validation", "test")
    table.to_csv(study.results / "predictions" / f"{run.name}.csv", index=False)
    return run


@pytest.mark.parametrize("name", ["thda-channel_nyul-raw", "thda-slice_minmax-n4", "thda-channel_zscore-raw"])
def test_windows_that_learn_and_n4_are_in_the_folder(small, tmp_path, name):
    run = frozen_run(small, name)
    export.write_model(small, name, tmp_path / "model")
    found = frozen.read_model(tmp_path / "model")
    assert (found.preprocessing.view.standard is not None) == ("nyul" in name)
    answered = one_case.examine(found, small.data("acquire") / "ambl" / EXTERNAL).seeds
    table = run.predict("external")
    expected = table[table["patient"] == EXTERNAL].sort_values("seed")["probability"]
    np.testing.assert_allclose(answered["probability"], expected, atol=1e-6)
    assert list(answered["seed"]) == [0, 1]


def test_a_case_is_cut_as_the_exported_studys_were(small, tmp_path):
    archive = {"source": "archive", "margin_slices": 1, "crop_px": 40}
    other = replace(small, values=small.values | {"acquire": archive})
    export.write_model(other, Run.of(small).name, tmp_path / "model")
    case = small.data("acquire") / "ambl" / EXTERNAL
    found = one_case.examine(frozen.read_model(tmp_path / "model"), case)
    expected = read_case(case, small.params("prepare", PrepareConfig), cut=(1, 40))
    np.testing.assert_array_equal(found.case.phases, expected.phases)
    assert "license: other" in (tmp_path / "model/README.md").read_text()
    assert "cut to 1 slices beyond the lesion and 40 pixels" in (tmp_path / "model/README.md").read_text()


def test_thresholds_and_calibration_under_folds_are_those_of_the_statistics(small, tmp_path, rng):
    run = Run.of(small)
    path = small.results / "predictions" / f"{run.name}.csv"
    before = path.read_bytes()
    fixed = {"cohort": "embedded", "run": run.name, "model": "thda", "window": run.window, "bias_field": "raw"}
    rows = [
        {
            "patient": f"p{k}",
            "split": split,
            "label": k % 2,
            "seed": seed,
            "fold": fold,
            "probability": rng.random(),
        }
        for split in ("validation", "test")
        for k in range(24)
        for seed in (0, 1)
        for fold in [k // 8 + (split == "test")]
    ]
    predicted = pd.DataFrame(rows).assign(**fixed)
    predicted["fold"] %= 3
    predicted.to_csv(path, index=False)
    try:
        export.write_model(small, run.name, tmp_path / "model")
    finally:
        path.write_bytes(before)
    found = one_case.examine(frozen.read_model(tmp_path / "model"), small.data("acquire") / "ambl" / EXTERNAL)
    validation = predicted[predicted["split"] == "validation"]
    case = found.seeds.assign(patient="case", run=run.name, label=0)[
        ["seed", "probability", "patient", "run", "label"]
    ]
    assert list(found.seeds["called"]) == list(calls(validation, case)[1][:, 0])
    for seed, one in case.groupby("seed"):
        own = validation[validation["seed"] == seed]
        difference = applied(youden_threshold, np.subtract, own, one)[1].item()
        expected = one["probability"].item() - difference
        assert found.seeds.set_index("seed")["threshold"][seed] == pytest.approx(expected)
    line = applied(fit_recalibration_or_none, recalibrate, validation, case)[1].item()
    assert found.calibrated == pytest.approx(line) and found.fitted_on == 24


def test_a_network_without_spatial_attention_has_no_page_but_a_folder(small, tmp_path):
    frozen_run(small, "resnet34_rgb")
    command.main(["export", "resnet34_rgb", "--to", str(tmp_path / "model")])
    found = "resnet34_rgb has no spatial attention, which the page shows; expected a THDA that has"
    with pytest.raises(SystemExit, match=found):
        command.main(["predict", str(CASE), "--model", str(tmp_path / "model")])
    assert "her2 predict" not in (tmp_path / "model/README.md").read_text()


# ------------------------------------------------------------------------------------------ the model card


def test_the_studys_model_card_stands_first_where_it_is_the_runs_own(small, tmp_path):
    card = small.results / "MODEL_CARD.md"
    card.write_text("---\nlicense: mit\n---\n# Card\n[paper](https://a.org/x), [`flow.json`](flow.json)\n")
    try:
        export.write_model(small, Run.of(small).name, tmp_path / "reference")
        frozen_run(small, "thda-slice_minmax-raw")
        export.write_model(small, "thda-slice_minmax-raw", tmp_path / "other")
    finally:
        card.unlink()
    text = (tmp_path / "reference/README.md").read_text()
    start = "---\nlicense: mit\n---\n# Card\n[paper](https://a.org/x), `flow.json`\n\n## Use this folder\n"
    assert text.startswith(start)  # files of the study are no links here
    other = (tmp_path / "other/README.md").read_text()
    assert "describes its reference, `thda-channel_q98-raw`. This is another run, and has no card." in other
    assert (
        other.startswith("---\nlicense: mit\n") and "# `thda-slice_minmax-raw`, embedded synthetic cohort" in other
    )


# ------------------------------------------------------------------------------------------ what is refused


def changed(folder, name, **values):
    """The folder, whole, with other values in one of its JSON files."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return sealed(folder)


def test_another_byte_is_refused_in_any_file(copied):
    for path in sorted(copied.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        found, written = digest(path)[:12], hashlib.sha256(content).hexdigest()[:12]
        expected = (
            f"{path.name}: its SHA-256 is {found}, not {written}, expected what was exported; get the folder a"
        )
        expected = "SHA256SUMS: found|not in SHA256SUMS" if path.name == "SHA256SUMS" else expected
        with pytest.raises(ValueError, match=expected):
            frozen.read_model(copied)
        path.write_bytes(content)
    frozen.read_model(copied)


def test_a_missing_file_is_refused_whichever_it_is(copied):
    for path in sorted(copied.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name}: no such file, expected .*; get the folder again from"):
            frozen.read_model(copied)
        path.write_bytes(content)


def test_a_file_without_a_digest_is_refused(copied):
    sums = copied / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "safetensors" not in line))
    with pytest.raises(ValueError, match="seed0.safetensors: not in SHA256SUMS, expected what was exported"):
        frozen.read_model(copied)


@pytest.mark.parametrize("line", ["no digest", f"{'0' * 64}  ../network.py", f"{'0' * 63}  network.py"])
def test_digests_are_of_files_in_the_folder_alone(copied, line):
    (copied / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(ValueError, match=f"SHA256SUMS: found '{re.escape(line)[:60]}.*, expected a line per file"):
        frozen.read_model(copied)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "config.json",
            {"format": "her2core-model-2"},
            "format 'her2core-model-2', expected 'her2core-model-1': an",
        ),
        (
            "config.json",
            {"model": "unet"},
            "model 'unet' of endpoint 'her2', expected one of thda, resnet34_rgb, vi",
        ),
        ("config.json", {"endpoint": "age"}, "model 'thda' of endpoint 'age', expected one of .* and of her2, hr"),
        ("config.json", {"architecture": {"width": 8}}, "config.json: architecture: missing head_input"),
        ("config.json", {"colour": 1}, "config.json: .*colour.*expected: format"),
        ("config.json", {"networks": [{"file": "../x.safetensors", "seed": 0, "fold": None}]}, "not in SHA256SUMS"),
        ("preprocessing.json", {"crop_px": 0}, "crop_px 0, expected the networks' image_px 48"),
        ("preprocessing.json", {"view": {"window": None}}, "preprocessing.json: .*window"),
        ("comparison.json", {"thresholds": {}}, "comparison.json: no threshold of seed 0"),
        ("comparison.json", {"ranges": {}}, "comparison.json: no range of early_s, grey_early"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(copied, name, values, message):
    with pytest.raises(ValueError, match=message):
        frozen.read_model(changed(copied, name, **values))


def test_json_that_is_none_is_refused(copied):
    (copied / "comparison.json").write_text("[")
    with pytest.raises(ValueError, match="comparison.json: .*, expected a JSON object; get the folder again"):
        frozen.read_model(sealed(copied))


def test_weights_of_another_network_are_refused(copied):
    path = copied / "seed0.safetensors"
    save_file({name: tensor[:1].clone() for name, tensor in load_file(path).items() if tensor.ndim}, path)
    with pytest.raises(
        ValueError, match="seed0.safetensors: Error.* in loading .*, expected the weights of thda-glo"
    ):
        frozen.read_model(sealed(copied))


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_a_pickle_is_refused_and_not_executed(copied, monkeypatch):
    monkeypatch.chdir(copied.parent)
    for content in (pickle.dumps({"weight": Trap()}), b""):
        (copied / "seed0.safetensors").write_bytes(content)
        with pytest.raises(
            ValueError, match="seed0.safetensors: .*, expected the weights of thda-global_minmax-raw"
        ):
            frozen.read_model(sealed(copied))
    torch.save({"weight": Trap()}, copied / "seed0.safetensors")
    with pytest.raises(ValueError, match="seed0.safetensors: .*, expected the weights of thda-global_minmax-raw"):
        frozen.read_model(sealed(copied))
    assert not Path("sprung").exists()


def test_source_in_the_folder_is_not_executed(copied, monkeypatch):
    monkeypatch.chdir(copied.parent)
    (copied / "network.py").write_text("import pathlib\npathlib.Path('sprung').touch()\n")
    frozen.read_model(sealed(copied))
    assert not Path("sprung").exists()


def test_a_folder_that_is_there_is_not_written_over(small, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit, match="her2: .*mine is there already; expected the name of a new folder"):
        command.main(["export", Run.of(small).name, "--to", str(tmp_path / "mine")])


def test_what_is_not_trained_says_what_to_run(small, tmp_path):
    with pytest.raises(SystemExit, match="models/embedded/cvt is not there yet; run first: dvc repro train@cvt"):
        command.main(["export", "cvt", "--to", str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def test_weights_that_change_while_they_are_copied_are_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "copyfile", lambda source, target: target.write_bytes(b"other"))
    with pytest.raises(
        ValueError, match="seed0.safetensors: its SHA-256 is another: it changed meanwhile, expected"
    ):
        export.write_model(small, Run.of(small).name, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_study_and_a_folder_cannot_both_answer(exported):
    with pytest.raises(SystemExit, match="her2: --cohort and --model: expected one of them"):
        command.main(["predict", str(CASE), "--model", str(exported), "--cohort", "sample"])
