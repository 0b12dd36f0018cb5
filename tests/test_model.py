"""THDA-ResNet does what its drawing says."""

import numpy as np
import pytest
import torch
from torchvision.models import resnet34

from her2core.model import (
    AttentionResNet,
    ChannelAttention,
    DualAttention,
    MultiScaleSpatialAttention,
    ThdaConfig,
    ThdaResNet,
)

NARROW = {"width": 8, "dropout": 0.0}
VARIANTS = [
    {},
    {"attention": "channel"},
    {"attention": "spatial"},
    {"attention": "none"},
    {"attention_stages": (4,)},
    {"spatial_kernels": (7,)},
    {"share_weights": False},
    {"share_weights": False, "head_input": "rgb_fused"},
    {"fusion": "attention"},
]


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return ThdaResNet(ThdaConfig(**NARROW | changes))


@pytest.fixture
def slices(generator):
    return torch.rand(4, 3, 32, 32, generator=generator)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_gives_one_finite_logit_per_slice(changes, slices):
    logits = make(**changes)(slices)
    assert logits.shape == (4,)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_parameter_of_every_variant_gets_a_gradient(changes, slices):
    model = make(**changes)
    for module in model.modules():  # a zero residual scale would rightly stop the gradient behind it
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    model(slices).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_heads_share_one_backbone_and_separate_heads_have_three(slices):
    shared, separate = make(), make(share_weights=False)
    assert len(shared.backbones) == 1 and len(separate.backbones) == 3
    assert sum(p.numel() for p in separate.backbones.parameters()) == 3 * sum(
        p.numel() for p in shared.backbones.parameters()
    )


def test_the_backbone_is_called_once_for_all_phases(slices):
    model, calls = make(), []
    model.backbones[0].register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape))
    model(slices)
    assert calls == [(12, 1, 32, 32)]


def test_a_shared_backbone_gives_equal_phases_equal_features(slices):
    model = make().eval()
    same = slices[:, :1].repeat(1, 3, 1, 1)
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(same)
    pre, early, late = seen[0].chunk(3, dim=1)
    torch.testing.assert_close(pre, early)
    torch.testing.assert_close(pre, late)


def test_each_head_sees_its_own_phase(slices):
    model, seen = make().eval(), []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].chunk(3, dim=1)))
    changed = slices.clone()
    changed[:, 2] = 1 - changed[:, 2]
    model(slices), model(changed)
    torch.testing.assert_close(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1])
    assert not torch.allclose(seen[0][2], seen[1][2])


def test_with_adjacent_slices_each_head_sees_its_phase_in_three_slices(generator):
    model = make(head_input="adjacent_slices").eval()
    x = torch.rand(2, 9, 32, 32, generator=generator)  # below, slice, above of pre, of early, of late
    torch.testing.assert_close(model.heads(x)[2:4], x[:, 3:6])
    logits = model(x)
    assert logits.shape == (2,) and not torch.equal(logits, model(x.flip(1)))
    with pytest.raises(ValueError, match=r"slices of shape \(N, 9, H, W\), found \(2, 3, 32, 32\)"):
        model(x[:, :3])


def test_permuting_patients_permutes_logits(slices):
    model, order = make().eval(), [2, 0, 3, 1]
    torch.testing.assert_close(model(slices)[order], model(slices[order]))


def test_a_batch_of_two_equals_two_batches_of_one(slices):
    model = make().eval()
    singly = torch.cat([model(slices[:1]), model(slices[1:2])])
    torch.testing.assert_close(model(slices[:2]), singly)


def test_attention_maps_are_gates_between_zero_and_one_in_the_shape_promised(slices):
    logits, gates = make()(slices, return_attention=True)
    assert logits.shape == (4,)
    for stage, channels, size in (("stage1", 8, 8), ("stage2", 16, 4), ("stage3", 32, 2), ("stage4", 64, 1)):
        assert gates[stage]["channel"].shape == (4, 3, channels)
        assert gates[stage]["spatial"].shape == (4, 3, size, size)
        for gate in gates[stage].values():
            assert gate.min() >= 0 and gate.max() <= 1


def test_returning_attention_changes_no_logit(slices):
    model = make().eval()
    torch.testing.assert_close(model(slices), model(slices, return_attention=True)[0], rtol=0, atol=0)


def test_attention_of_one_patient_does_not_depend_on_its_neighbours(slices):
    model = make().eval()
    together = model(slices, return_attention=True)[1]["stage1"]["spatial"][1]
    alone = model(slices[1:2], return_attention=True)[1]["stage1"]["spatial"][0]
    torch.testing.assert_close(together, alone)


def test_a_channel_gate_knows_how_bright_a_channel_is_but_not_where(slices):
    torch.manual_seed(0)
    attention = ChannelAttention(3, reduction=16, gate_bias=2.0)
    gate = attention(slices)
    assert gate.shape == (4, 3, 1, 1) and 0 < gate.min() and gate.max() < 1
    torch.testing.assert_close(attention(slices.flip(2).transpose(2, 3)), gate)
    assert not torch.allclose(attention(slices / 2), gate)


def test_spatial_attention_adds_parallel_kernels_of_the_sizes_asked_for():
    attention = MultiScaleSpatialAttention((3, 5, 7), gate_bias=2.0)
    assert [tuple(c.weight.shape) for c in attention.scales] == [(1, 2, 3, 3), (1, 2, 5, 5), (1, 2, 7, 7)]


def test_a_gate_starts_nearly_open():
    attention = DualAttention(16, ThdaConfig(gate_bias=20.0))
    x = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(attention(x)[0], x, atol=1e-3, rtol=0)


def test_width_64_without_attention_is_torchvisions_resnet34(slices):
    torch.manual_seed(0)
    theirs = resnet34(weights=None).eval()
    ours = AttentionResNet(ThdaConfig(attention="none")).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc")})
    theirs.fc = torch.nn.Identity()
    torch.testing.assert_close(ours(slices)[0], theirs(slices))


def test_a_grey_image_gives_what_three_equal_channels_give(slices):
    net = AttentionResNet(ThdaConfig(**NARROW)).eval()
    grey = slices[:, :1]
    torch.testing.assert_close(net(grey)[0], net(grey.repeat(1, 3, 1, 1))[0], atol=1e-5, rtol=1e-4)


def test_fusion_by_attention_weighs_phases_with_weights_that_sum_to_one(slices):
    model = make(fusion="attention")
    same = torch.ones(2, 3, 64)
    torch.testing.assert_close(model.fuse(same), torch.ones(2, 64))


def test_it_overfits_eight_phantom_slices():
    from her2core.phantom.patient import make_patient
    from her2core.phantom.sites import SITES

    site, images = SITES["spy1"], []
    for seed in range(8):
        patient = make_patient(seed, seed % 2, site, bayes_auc=0.95)
        z, y, x = (int(round(c)) for c in np.argwhere(patient.lesion_mask).mean(0))
        phases = patient.series.array.astype(np.float32)
        y, x = min(max(y, 16), 112), min(max(x, 16), 112)
        images.append(phases[:, z, y - 16 : y + 16, x - 16 : x + 16] / phases.max())
    x, target = torch.from_numpy(np.stack(images)), torch.tensor([0.0, 1.0] * 4)
    model = make(width=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert ((model(x) > 0).float() == target).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "squeeze"}, "attention='squeeze': expected one of both, channel, spatial, none"),
        ({"fusion": "sum"}, "fusion='sum'"),
        ({"head_input": "rgb"}, "head_input='rgb'"),
        ({"attention_stages": (5,)}, "attention_stages=5"),
        ({"blocks": (3, 4, 6)}, "expected four stages"),
        ({"pretrained": True, "width": 16}, "ImageNet weights exist for width 64"),
        ({"head_input": "rgb_fused"}, "identical"),
    ],
    ids=str,
)
def test_a_choice_that_does_not_exist_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ThdaConfig(**changes)


@pytest.mark.parametrize("shape", [(4, 2, 32, 32), (3, 32, 32), (4, 1, 32, 32)])
def test_slices_without_three_phases_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected slices of shape \(N, 3, H, W\)"):
        make()(torch.zeros(shape))
