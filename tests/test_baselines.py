"""Every network answers the same call."""

import pytest
import torch

from her2core.baselines import MODELS, ModelConfig, VitConfig, build_model
from her2core.model import ThdaConfig

CONFIG = ModelConfig(ThdaConfig(width=8, dropout=0.0), VitConfig(8, 32, 2, 2, 64, dropout=0.0))


@pytest.fixture
def slices(generator):
    return torch.rand(3, 3, 32, 32, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_finite_logit_per_slice_and_trains(name, slices):
    model = build_model(name, CONFIG, 32)
    logits = model(slices)
    assert logits.shape == (3,) and torch.isfinite(logits).all()
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_two_equals_two_batches_of_one(name, slices):
    torch.manual_seed(0)
    model = build_model(name, CONFIG, 32).eval()
    singly = torch.cat([model(slices[:1]), model(slices[1:2])])
    torch.testing.assert_close(model(slices[:2]), singly)


def test_the_plain_network_has_no_attention_and_one_head():
    names = [n for n, _ in build_model("resnet34_rgb", CONFIG, 32).named_parameters()]
    assert not any("attention" in n for n in names)


def test_patches_have_to_tile_the_image():
    with pytest.raises(ValueError, match="patches of 8 px do not tile an image of 30 px"):
        build_model("vit", CONFIG, 30)


def test_an_unknown_model_is_refused_by_name():
    with pytest.raises(ValueError, match="model 'cnn': expected one of thda, resnet34_rgb, vit"):
        build_model("cnn", CONFIG, 32)
