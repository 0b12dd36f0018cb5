"""Pretrained weights: the right file is put in place, any other is refused, and what needs none asks for none.

The files are made up, under the names and with the keys and shapes of the published ones.
"""

import errno
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from prepared_samples import make_run, write_prepared
from safetensors.torch import load_file, save_file
from torchvision.models import resnet34, vit_b_16

from her2core.baselines import CvtConfig, ModelConfig, VitConfig, build_model, needed_weights
from her2core.formats.weights import FILES, Weights, fill, find, load, published
from her2core.model import ThdaConfig
from her2core.runs import train_run
from her2core.train import TrainConfig

SPLITS = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Empty caches."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A folder with the three files, and the `Weights` that name it."""
    from transformers import CvtConfig as Shape
    from transformers import CvtForImageClassification

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    torch.save(resnet34().state_dict(), folder / FILES["resnet34"])
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vit_b_16().state_dict().items()}
    # one number per tensor, expanded: a small file; and the names of torchvision 0.12, which published it
    named = {
        k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): s for k, s in shapes.items()
    }
    torch.save({k: torch.rand(1).expand(shape) for k, shape in named.items()}, folder / FILES["vit_b_16"])
    cvt = CvtForImageClassification(Shape(num_labels=1000)).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in cvt.items()}, folder / FILES["cvt_13"])
    return Weights(str(folder), **{name: sha256(folder / file) for name, file in FILES.items()})


@pytest.fixture
def models(made_up):
    """The networks of the real study, all pretrained."""
    separate = {"separate": {"share_weights": False}, "scratch": {"pretrained": False, "width": 8}}
    thda, vit, cvt = (kind(pretrained=True) for kind in (ThdaConfig, VitConfig, CvtConfig))
    return ModelConfig(thda, vit, cvt, separate, made_up)


def built(name, models, pretrained=True, image_px=48):
    torch.manual_seed(0)
    return build_model(name, models, image_px, pretrained)


@pytest.mark.parametrize(("name", "heads"), [("thda", 1), ("thda_separate", 3)])
def test_a_pretrained_thda_is_the_file_but_for_its_attention_and_its_classifier(name, heads, models, made_up):
    tensors, start = load("resnet34", made_up), built(name, models, pretrained=False).state_dict()
    found = built(name, models).state_dict()
    body = {
        f"backbones.{head}.{k}": t for head in range(heads) for k, t in tensors.items() if not k.startswith("fc.")
    }
    own = {k: t for k, t in start.items() if k not in body}
    assert all(torch.equal(found[k], t) for k, t in (body | own).items()) and set(found) == set(body) | set(own)
    assert {k.split(".")[2] for k in own if k.startswith("backbones")} == {"attention"}
    assert not torch.equal(start["backbones.0.conv1.weight"], tensors["conv1.weight"])
    gates = [t for k, t in found.items() if k.endswith("spatial.bias")]
    assert gates and all(gate == models.thda.gate_bias for gate in gates)


def test_the_plain_network_starts_from_the_same_file(models, made_up):
    found = built("resnet34_rgb", models).state_dict()
    weight = load("resnet34", made_up)["layer4.2.conv2.weight"]
    assert torch.equal(found["backbone.backbone.layer4.2.conv2.weight"], weight)


def test_a_pretrained_vit_is_the_file_with_its_positions_interpolated_to_the_image(models, made_up):
    found, tensors = built("vit", models).backbone.state_dict(), load("vit_b_16", made_up)
    layer = "encoder.layers.encoder_layer_11"
    assert torch.equal(found[f"{layer}.mlp.3.weight"], tensors[f"{layer}.mlp.linear_2.weight"])
    assert torch.equal(found["conv_proj.weight"], tensors["conv_proj.weight"])
    assert found["encoder.pos_embedding"].shape == (1, 1 + 3 * 3, 768)
    torch.testing.assert_close(
        found["encoder.pos_embedding"], tensors["encoder.pos_embedding"][:, :10]
    )  # all alike


def test_a_pretrained_cvt_is_the_file_without_its_classifier(models, made_up):
    found, tensors = built("cvt", models).backbone.backbone.state_dict(), load("cvt_13", made_up)
    assert {f"cvt.{k}" for k in found} == {k for k in tensors if not k.startswith(("layernorm.", "classifier."))}
    assert all(torch.equal(t, tensors[f"cvt.{k}"]) for k, t in found.items())


@pytest.fixture
def run(tmp_path, models):
    patients = [(f"p{k}", split, k % 2, 1) for k, split in enumerate(SPLITS)]
    (tmp_path / "prepare").mkdir()
    prepared = write_prepared(tmp_path / "prepare", np.random.default_rng(0), patients, px=32)
    config = TrainConfig(seeds=(0,), epochs=1, batch_size=4, lr=1e-12, device="cpu", jobs=1)
    return make_run(prepared, tmp_path / "frozen", models=models, training=config)


def test_a_training_starts_from_the_file_and_what_it_froze_needs_no_file(run, made_up):
    weights, _ = train_run(run, run.slices())  # at a learning rate that changes nothing
    published = load("resnet34", made_up)
    for name in ("conv1.weight", "layer4.2.conv2.weight"):
        torch.testing.assert_close(weights[0, None][f"backbones.0.{name}"], published[name], atol=1e-7, rtol=0)
    run.freeze(weights)
    elsewhere = replace(run, models=replace(run.models, weights=Weights()))
    found = elsewhere.networks()[0].state_dict()
    assert all(torch.equal(found[k], t) for k, t in weights[0, None].items())


def test_fresh_networks_are_random_and_need_no_file_also_where_training_starts_pretrained(run, made_up):
    name = "backbones.0.layer4.1.conv1.weight"
    elsewhere = replace(run, models=replace(run.models, weights=Weights()))
    a, b, again = (elsewhere.fresh(seed).state_dict()[name] for seed in (0, 1, 0))
    assert torch.equal(a, again) and not torch.equal(a, b)
    assert not torch.equal(a, load("resnet34", made_up)[name.removeprefix("backbones.0.")])


def test_which_files_a_study_needs_follows_from_its_models(models):
    assert needed_weights(models, ["thda", "vit", "thda_separate", "resnet34_rgb"]) == ["resnet34", "vit_b_16"]
    assert needed_weights(models, ["cvt"]) == ["cvt_13"]
    assert needed_weights(replace(models, thda=ThdaConfig(width=8)), ["thda", "resnet34_rgb"]) == []
    assert needed_weights(models, ["thda_scratch"]) == []


# --- where they lie ---------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A file of one tensor in a folder, and the `Weights` that name it as ResNet-34's."""
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save({"a": torch.arange(3)}, folder / FILES["resnet34"])
    return Weights(str(folder), resnet34=sha256(folder / FILES["resnet34"])[:8])


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_found_in_its_librarys_cache(name, tmp_path, made_up):
    cached = replace(made_up, folder="")
    path, _ = published(name)
    assert path.is_relative_to(tmp_path / ("hub" if name == "cvt_13" else "torch/hub/checkpoints"))
    path.parent.mkdir(parents=True)
    path.symlink_to(find(name, made_up))
    assert find(name, cached) == path and len(load(name, cached)) > 100


def test_the_hubs_own_client_finds_a_file_where_it_is_looked_for():
    from huggingface_hub import constants, hf_hub_download

    path, _ = published("cvt_13")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    options = {"cache_dir": constants.HF_HUB_CACHE, "local_files_only": True}
    assert hf_hub_download("microsoft/cvt-13", path.name, revision=path.parent.name, **options) == str(path)


def test_a_relative_folder_lies_in_the_compendium(small, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert find("resnet34", replace(small, folder="folder")) == tmp_path / "folder" / FILES["resnet34"]


@pytest.mark.parametrize(("name", "model"), [("resnet34", "thda"), ("vit_b_16", "vit"), ("cvt_13", "cvt")])
def test_a_file_that_cannot_be_had_is_one_clear_error(name, model, models, tmp_path):
    nowhere = replace(models, weights=Weights(str(tmp_path / "mine")), thda=ThdaConfig(pretrained=True))
    place = f"{tmp_path}/mine or {tmp_path}/{'hub' if name == 'cvt_13' else 'torch'}"
    with pytest.raises(
        OSError,
        match=f"{FILES[name]} .{name}. is not in {place}.*the stage preflight downloads it.*weights.folder",
    ):
        build_model(model, nowhere, 48)
    assert not list(tmp_path.rglob("*.pth"))


# --- what is refused --------------------------------------------------------------------------------------


def test_a_file_with_another_digest_is_refused_unread(small):
    path = find("resnet34", small)
    path.write_bytes(b"malicious")
    found = hashlib.sha256(b"malicious").hexdigest()
    message = (
        f"{path}: SHA-256 is {found}, expected {small.resnet34} .models.weights.resnet34.*delete or replace it"
    )
    with pytest.raises(ValueError, match=message):
        load("resnet34", small)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Malicious()}, "a pickle that is broken or holds code, expected a file of weights: tensors by name"),
        ([torch.zeros(1)], "a list of other things, expected a file of weights"),
        ({"a": "text"}, "a dict of other things, expected a file of weights: tensors by name; delete or replace"),
    ],
    ids=["code", "list", "text"],
)
def test_a_pickle_that_is_no_file_of_weights_is_refused_and_not_executed(content, message, small, capsys):
    path = find("resnet34", small)
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load("resnet34", replace(small, resnet34=sha256(path)))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("resnet34", b"half"), ("resnet34", b""), ("cvt_13", b"half")])
def test_bytes_that_are_no_weights_are_refused(name, content, tmp_path):
    (tmp_path / FILES[name]).write_bytes(content)
    known = {name: hashlib.sha256(content).hexdigest()}
    with pytest.raises(ValueError, match=f"{FILES[name]}: .*, expected a file of weights"):
        load(name, Weights(str(tmp_path), **known))


def test_a_disk_that_fails_is_not_taken_for_a_bad_file(small, monkeypatch):
    def failing(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(OSError, match="Input/output error"):
        load("resnet34", small)


def test_without_a_digest_the_hubs_revision_alone_names_the_file(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / FILES["cvt_13"])
    assert load("cvt_13", Weights(str(tmp_path), cvt_13="")).keys() == load_file(tmp_path / FILES["cvt_13"]).keys()


@pytest.mark.parametrize("digest", ["", "abc", "B627A593", "z" * 64, "a" * 65])
def test_a_digest_that_pins_nothing_is_refused(digest):
    with pytest.raises(ValueError, match=f"weights.resnet34='{digest}': expected 8 to 64 digits"):
        Weights(resnet34=digest)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(1, 2)}, 'do not fit: .*Missing key.* "bias"'),
        (
            {"weight": torch.zeros(1, 2), "bias": torch.zeros(1), "x": torch.zeros(1)},
            'do not fit: .*Unexpected key.* "x"',
        ),
        ({"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, "do not fit: .*size mismatch for weight"),
    ],
    ids=["missing", "left over", "shape"],
)
def test_weights_of_another_network_are_refused(tensors, message):
    with pytest.raises(ValueError, match=f"pretrained weights {message}"):
        fill(torch.nn.Linear(2, 1), tensors)
