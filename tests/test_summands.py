"Edge cases and properties of shares, gains, and both ways of following a sum"
import copy, math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from resnotes.blocks import PlainBlock, StrictBlock
from resnotes.init import glorot_normal, he_normal, init_layers
from resnotes.norm import placements
from resnotes.summands import (Moments, apply_gains, backward_factor, balanced_gains, chain_gradients, chain_shares, conv_moments,
                               harmonic_gains, measure_shares, own_variance, predict_shares, relu_variance, split_sum)
from resnotes.unet import UNetConfig, build

quick = settings(max_examples=40, deadline=None)
some_gains = st.lists(st.floats(0, 3), max_size=12)

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def small(norm='samplers', blocks=(1, 2, 1), width=4, **changes):
    return init_layers(build(UNetConfig(blocks, width=width, norm=norm, convs=1, **changes)), he_normal)


# --- the chain ---------------------------------------------------------------------------------------------------------
@quick
@given(some_gains)
def test_shares_are_a_partition_and_gradients_end_at_one(gains):
    shares, growth = chain_shares(gains), chain_gradients(gains)
    assert len(shares) == len(growth) == len(gains) + 1
    assert sum(shares) == pytest.approx(1) and min(shares) >= 0
    assert growth[-1] == 1 and all(a >= b for a, b in zip(growth, growth[1:]))

@quick
@given(some_gains)
def test_shares_can_be_turned_back_into_gains(gains):
    p = chain_shares(gains)
    for k, g in enumerate(gains, 1):
        if sum(p[:k]) > 1e-9: assert math.sqrt(p[k]/sum(p[:k])) == pytest.approx(g, abs=1e-6)

@quick
@given(st.integers(1, 300), st.floats(0, 1))
def test_harmonic_gains_lie_between_the_two_closed_forms(depth, rho):
    gains = harmonic_gains(depth, rho)
    assert len(gains) == depth
    for k, g in enumerate(gains, 1): assert 1/k - 1e-9 <= g <= 1/math.sqrt(k) + 1e-9

def test_small_gains_give_exponentials_of_their_squares():
    gains = [.01]*100
    assert chain_shares(gains)[0] == pytest.approx(math.exp(-.01), rel=1e-4)
    assert chain_gradients(gains)[0] == pytest.approx(math.exp((backward_factor - 1)*.01), rel=1e-3)

def test_generators_are_welcome():
    assert chain_shares(g for g in (1., 1.)) == chain_shares([1, 1])
    assert chain_gradients(g for g in (1., 0.)) == chain_gradients([1, 0])

@pytest.mark.parametrize('call, error, words', [
    (lambda: chain_shares([math.nan]), ValueError, 'gain must be a finite number'), (lambda: chain_gradients(['1']), TypeError, 'gain must be a real number'),
    (lambda: harmonic_gains(0), ValueError, 'depth must be at least 1'), (lambda: harmonic_gains(3, -.1), ValueError, r'correlation must be a finite number in \[0, 1\]'),
    (lambda: apply_gains(nn.Linear(2, 2), [1]), ValueError, 'model must hold a StrictBlock'), (lambda: apply_gains(StrictBlock(2), [1, 2]), ValueError, r'one number per block \(1\), got 2'),
    (lambda: apply_gains(StrictBlock(2), [-1]), ValueError, 'gain must be'), (lambda: predict_shares(StrictBlock(2), 8), TypeError, 'model must be a StrictUNet'),
    (lambda: predict_shares(small(skip='add'), 16), ValueError, "skip must be 'none'"), (lambda: balanced_gains(small(block='plain'), 16), ValueError, "blocks of the kind 'strict'"),
    (lambda: predict_shares(small(up='nearest'), 16), ValueError, "got ResizeConv"), (lambda: predict_shares(small(), 0), ValueError, 'size must be at least 1'),
    (lambda: measure_shares(small(), torch.zeros(1, 3, 16, 16)), ValueError, r'x must be \[batch, 1')])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words): call()

def test_apply_gains_refuses_before_it_changes_anything():
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError): apply_gains(model, [1, 2, -1, 1])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- gains -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_apply_gains_sets_the_size_of_the_last_convolution_only(dtype):
    model = small().to(dtype)
    first = [b.branch.conv1.weight.clone() for s in model.stages for b in s]
    assert apply_gains(model, [.5]*4) is model
    for b, w in zip((b for s in model.stages for b in s), first):
        assert b.branch.conv2.weight.dtype == dtype and torch.equal(b.branch.conv1.weight, w)
        fan = b.branch.conv2.weight[0].numel()
        assert own_variance(b.branch.conv2)*fan*relu_variance == pytest.approx(.25, rel=.02)

def test_zero_gains_leave_only_the_stem():
    model = apply_gains(small('none'), [0.]*4)
    for rows in (predict_shares(model, 16), measure_shares(model, torch.randn(2, 1, 16, 16))):
        assert [r.share for r in rows if r.stage == 2] == pytest.approx([1, 0, 0, 0, 0])

@pytest.mark.parametrize('norm', placements)
def test_balanced_gains_make_predicted_shares_nearly_equal(norm):
    model = small(norm, (2, 2, 2), width=8)
    shares = [r.share for r in predict_shares(apply_gains(model, balanced_gains(model, 32)), 32) if r.stage == 2]
    assert len(shares) == 7 and max(shares)/min(shares) < 1.5

def test_balanced_gains_of_a_normed_tower_are_harmonic_but_for_borders():
    model = small('blocks', (8,), width=8)
    gains = balanced_gains(model, 64)
    assert gains[1:] == pytest.approx(harmonic_gains(8)[1:], rel=.02)


# --- following the sum ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('norm', placements)
@pytest.mark.parametrize('size', [(17, 20), (8, 8)])
def test_split_terms_add_up_to_the_stream_for_any_sides(norm, size):
    model, x = small(norm), torch.randn(3, 1, *size)
    *_, (stage, parts) = split_sum(model, x)
    assert stage == 2 and parts.shape == (5, 3, 4, *size)
    seen = []
    handle = model.head.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(x), handle.remove()
    centre = lambda t: t - t.mean((0, 2, 3), keepdim=True)
    if norm == 'none': assert torch.allclose(parts.sum(0), seen[0], atol=1e-3*seen[0].std().item())
    deviation = (centre(parts.sum(0)) - centre(seen[0])).square().mean()/centre(seen[0]).square().mean()
    assert deviation < (1e-8 if norm in ('none', 'final') else .02)      # a removed constant meets the zero padding

@pytest.mark.parametrize('norm', placements)
def test_both_ways_list_the_same_summands(norm):
    model = small(norm)
    a, b = predict_shares(model, (16, 20)), measure_shares(model, torch.randn(2, 1, 16, 20))
    assert [(r.stage, r.index) for r in a] == [(r.stage, r.index) for r in b]
    for rows in (a, b):
        for stage in range(3): assert sum(r.share for r in rows if r.stage == stage) == pytest.approx(1)

def test_measuring_changes_nothing():
    model = small('blocks').eval()
    before = copy.deepcopy(model.state_dict())
    measure_shares(model, torch.randn(2, 1, 16, 16))
    assert not model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

def test_shares_do_not_depend_on_layout_or_batch_split():
    model, x = small('samplers'), torch.randn(2, 1, 16, 16)
    wide = torch.randn(2, 1, 16, 32)
    wide[..., ::2] = x
    rows = measure_shares(model, x)
    for y in (wide[..., ::2], x.contiguous(memory_format=torch.channels_last)):
        assert [r.share for r in measure_shares(model, y)] == pytest.approx([r.share for r in rows], rel=1e-4)

def test_single_image_and_a_net_without_blocks():
    assert len(measure_shares(small(), torch.randn(1, 1, 16, 16))) == 2 + 4 + 5
    assert [r.share for r in predict_shares(small(blocks=(0, 0, 0)), 16)] == [1, 1, 1]

def test_a_trained_shift_is_refused():
    model = small('blocks')
    nn.init.ones_(model.stages[0][1].bias)
    with pytest.raises(ValueError, match='shift 0'): measure_shares(model, torch.randn(2, 1, 16, 16))

def test_conv_moments_of_a_constant_and_of_noise():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    noise, constant = (conv_moments(layer, Moments(torch.ones(9, 9, dtype=torch.float64), mean), 1/72) for mean in (0., 1.))
    assert noise.variance == pytest.approx((25/27)**2) and noise.mean == 0
    assert constant.mean == pytest.approx((1 + 2*(8/9)**2)**2/9)         # fractions of the outputs that see each tap, squared
    draws = torch.stack([glorot_normal(layer.weight).sum((1, 2, 3)) for _ in range(400)])
    assert draws.square().mean().item() == pytest.approx(1, rel=.1)
