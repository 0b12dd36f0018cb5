"""Every network answers the same call."""

from dataclasses import replace

import pytest
import torch

from her2core.baselines import MODELS, CvtConfig, ModelConfig, VitConfig, build_model, is_model
from her2core.model import ThdaConfig

CONFIG = ModelConfig(
    ThdaConfig(width=8, dropout=0.0),
    VitConfig(8, 32, 2, 2, 64, dropout=0.0),
    CvtConfig((3, 3, 3), (2, 2, 2), (8, 12, 24), depths=(1, 2, 3), drop_path=0.0),
    {"spatial": {"attention": "spatial"}, "separate": {"share_weights": False}, "wrong": {"widht": 8}},
)


@pytest.fixture
def slices(generator):
    return torch.rand(3, 3, 32, 32, generator=generator)


@pytest.mark.parametrize("name", [*MODELS, "thda_spatial", "thda_separate"])
def test_every_model_gives_one_finite_logit_per_slice_and_trains(name, slices):
    model = build_model(name, CONFIG, 32)
    logits = model(slices)
    assert logits.shape == (3,) and torch.isfinite(logits).all()
    logits.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_two_equals_two_batches_of_one(name, slices):
    torch.manual_seed(0)
    model = build_model(name, CONFIG, 32).eval()
    singly = torch.cat([model(slices[:1]), model(slices[1:2])])
    torch.testing.assert_close(model(slices[:2]), singly)


def test_the_plain_network_has_no_attention_and_one_head():
    names = [n for n, _ in build_model("resnet34_rgb", CONFIG, 32).named_parameters()]
    assert not any("attention" in n for n in names)


def test_a_variant_is_thda_with_its_changes_and_nothing_else():
    assert CONFIG.thda_of("thda_spatial") == replace(CONFIG.thda, attention="spatial")
    assert len(build_model("thda_separate", CONFIG, 32).backbones) == 3


def test_the_default_shapes_are_those_of_the_published_networks():
    vit = build_model("vit", ModelConfig(ThdaConfig(), VitConfig()), 224)
    cvt = build_model("cvt", ModelConfig(ThdaConfig()), 224)
    count = {n: sum(p.numel() for p in m.backbone.parameters()) for n, m in (("vit", vit), ("cvt", cvt))}
    assert count == {"vit": 86_567_656 - 1000 * 769, "cvt": 19_997_480 - 1000 * 385 - 2 * 384}


def test_the_parts_of_a_cvt_are_those_asked_for():
    cvt = build_model("cvt", replace(CONFIG, cvt=replace(CONFIG.cvt, drop_path=0.25)), 32).backbone.backbone
    stages = cvt.encoder.stages
    shapes = [stage.embedding.convolution_embeddings.projection for stage in stages]
    assert [(c.kernel_size[0], c.stride[0], c.padding[0]) for c in shapes] == [(3, 2, 1)] * 3
    assert [len(stage.layers) for stage in stages] == [1, 2, 3]
    assert cvt.config.drop_path_rate == [0.0, 0.0, 0.25]


def test_the_answer_of_a_fresh_narrow_cvt_depends_on_the_image(slices):
    """Under the authors' initial weights the answers lie within a thousandth of each other."""
    torch.manual_seed(0)
    assert build_model("cvt", CONFIG, 32).eval()(slices).std() > 0.01


def test_patches_have_to_tile_the_image():
    with pytest.raises(ValueError, match="patches of 8 px do not tile an image of 30 px"):
        build_model("vit", CONFIG, 30)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnn", "model 'cnn': expected one of thda, resnet34_rgb, vit, cvt or thda_<variant>"),
        ("thda_none", "model 'thda_none': models.variants has spatial, separate, wrong"),
        ("thda_wrong", "models.variants.wrong: THDA has no widht"),
    ],
)
def test_an_unknown_model_is_refused_by_name(name, message):
    assert is_model(name) == name.startswith("thda")
    with pytest.raises(ValueError, match=message):
        build_model(name, CONFIG, 32)


def test_imagenet_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"ImageNet weights exist for ViT-B/16 .*, not \(8, 768"):
        VitConfig(patch_px=8, pretrained=True)
    with pytest.raises(ValueError, match=r"weights exist for CvT-13 .*, not \(\(7, 3, 3\), .*\(1, 2, 3\)\)$"):
        CvtConfig(depths=(1, 2, 3), pretrained=True)


def test_a_cvt_that_the_library_cannot_build_is_refused():
    with pytest.raises(ValueError, match=r"depths=\(1, 1, 2\): expected at least \(1, 2, 3\)"):
        CvtConfig(depths=(1, 1, 2))
