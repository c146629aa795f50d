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
                               harmonic_gains, layer_rules, measure_shares, norm_moments, own_variance, predict_shares, relu_variance, split_sum, white)
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
    (lambda: predict_shares(small(skip='add'), 16), ValueError, "skip must be 'none'"), (lambda: balanced_gains(UNetConfig((1, 1, 1), block='plain'), 16), ValueError, "blocks of the kind 'strict'"),
    (lambda: balanced_gains((1, 1, 1), rule='lecun'), ValueError, "rule must be one of"), (lambda: balanced_gains((1, 1, 1), size=3), ValueError, 'size must be at least 4, got 3'),
    (lambda: balanced_gains(-1), ValueError, 'config must be at least 0'), (lambda: balanced_gains('strict_unet48'), TypeError, 'config must be a whole number'), (lambda: balanced_gains((1, 1)), ValueError, 'blocks must be an odd number'),
    (lambda: predict_shares(small(up='nearest'), 16), ValueError, "got ResizeConv"), (lambda: predict_shares(small(), (8, 0)), ValueError, 'size must be at least 4, got 0'),
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

def test_zero_weights_cannot_be_scaled_but_to_zero():
    model = apply_gains(small(), [0., 1, 1, 1])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='zeros in the last convolution of block 1'): apply_gains(model, [1.]*4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not apply_gains(model, [0.]*4).stages[0][0].branch.conv2.weight.any()

def test_zero_gains_leave_only_the_stem():
    model = apply_gains(small('none'), [0.]*4)
    for rows in (predict_shares(model, 16), measure_shares(model, torch.randn(2, 1, 16, 16))):
        assert [r.share for r in rows if r.stage == 2] == pytest.approx([1, 0, 0, 0, 0])

def exact(model, rule):
    "Weights whose mean square is what the rule says, without scatter"
    for m in init_layers(model, he_normal).modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)): m.weight.data.mul_(math.sqrt(layer_rules[rule](m)/own_variance(m)))
    return model

@pytest.mark.parametrize('norm', placements)
@pytest.mark.parametrize('rule', layer_rules)
@pytest.mark.parametrize('size', [32, (17, 23)])
def test_balanced_gains_make_predicted_shares_equal(norm, rule, size):
    config = UNetConfig((2, 2, 2), width=4, norm=norm, convs=1)
    model = apply_gains(exact(build(config), rule), balanced_gains(config, size, rule))
    assert [r.share for r in predict_shares(model, size) if r.stage == 2] == pytest.approx([1/7]*7, rel=2e-3)

def test_balanced_gains_draw_nothing_and_do_not_depend_on_width():
    before = torch.get_rng_state()
    narrow, wide = (balanced_gains(UNetConfig((1, 2, 1), width=n, in_channels=n, convs=1), 24) for n in (4, 32))
    assert narrow == pytest.approx(wide) and torch.equal(before, torch.get_rng_state())

def test_balanced_gains_take_counts_for_a_configuration_and_any_rule():
    assert balanced_gains((1, 2, 1), 16) == balanced_gains(UNetConfig((1, 2, 1)), 16)
    assert balanced_gains(3, 16) == balanced_gains([3], 16) == balanced_gains(UNetConfig((3,)), 16)
    assert balanced_gains((1, 2, 1), 16, layer_rules['he']) == balanced_gains((1, 2, 1), 16, 'he')
    assert balanced_gains((0, 0, 0), 16) == []

def test_balanced_gains_of_a_normed_tower_are_harmonic_but_for_borders():
    assert balanced_gains(UNetConfig((8,), norm='blocks'), 64)[1:] == pytest.approx(harmonic_gains(8)[1:], rel=.03)


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
    ones = torch.ones(9, 9, dtype=torch.float64)
    noise, constant = (conv_moments(layer, m, 1/72) for m in (white((9, 9)), Moments(ones, ones[None])))
    assert noise.variance == pytest.approx((25/27)**2) and noise.mean == 0
    assert constant.mean == pytest.approx((1 + 2*(8/9)**2)**2/9)         # fractions of the outputs that see each tap, squared
    draws = torch.stack([glorot_normal(layer.weight).sum((1, 2, 3)) for _ in range(400)])
    assert draws.square().mean().item() == pytest.approx(1, rel=.1)

@pytest.mark.parametrize('layer', [nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, 2, 1), nn.ConvTranspose2d(64, 64, 3, 2, 1),
                                   nn.Conv2d(64, 64, 3, padding=1, padding_mode='circular')])
def test_patterns_are_the_products_of_mean_images(layer):
    "A relu of noise, through the layer: mean images over many draws of the weights, and what a norm leaves of them"
    m = conv_moments(layer, white((7, 8)).relu(), 1/9/64)
    wanted = torch.einsum('ihw,jkl,ij->hwkl', m.patterns, m.patterns, torch.eye(len(m.patterns), dtype=torch.float64))
    flat, found = torch.full((1, 64, 7, 8), 1/math.sqrt(2*math.pi)), 0
    for _ in range(40):
        nn.init.normal_(layer.weight, 0, math.sqrt(1/9/64))
        nn.init.zeros_(layer.bias)
        y = layer(flat)[0].double()
        found = found + torch.einsum('chw,ckl->hwkl', y, y).detach()/64/40
    assert torch.allclose(found, wanted, atol=.1*wanted.max().item())
    centred = m.centred()
    assert torch.allclose(centred.patterns.mean((1, 2)), torch.zeros(1, dtype=torch.float64), atol=1e-9)
    assert centred.second.mean().item() == pytest.approx(m.variance)

def test_groups_see_the_channels_of_their_group_only():
    noise = white((6, 7)).relu()
    whole, grouped = conv_moments(nn.Conv2d(2, 4, 3, padding=1), noise, .1), conv_moments(nn.Conv2d(8, 8, 3, padding=1, groups=4), noise, .1)
    assert grouped.variance == pytest.approx(whole.variance) and grouped.mean == pytest.approx(whole.mean)


# --- norms on the main path ----------------------------------------------------------------------------------------------
def orthogonal(count, size=4):
    "Centred patterns of mean square 1, orthogonal over the pixels"
    columns = torch.cat([torch.ones(size*size, 1), torch.randn(size*size, count)], 1).double()
    return torch.linalg.qr(columns)[0].T[1:].view(count, size, size)*size

def test_without_mean_images_a_norm_divides_by_the_variance():
    parts = [white((5, 5)).scaled(v) for v in (1., 2., 5.)]
    after, total = norm_moments(parts, white((5, 5)).scaled(8))
    assert [p.variance for p in after] == pytest.approx([1/8, 2/8, 5/8]) and total.variance == pytest.approx(1)

@pytest.mark.parametrize('m', [5, 10])
def test_a_norm_of_mean_images_alone_is_the_mean_of_one_over_chi_squared(m):
    u = orthogonal(m)
    tiny, image = white((4, 4)).scaled(1e-6), Moments(u.square().sum(0), u)
    after, total = norm_moments([tiny, image], Moments(tiny.second + image.second, u))
    assert after[0].variance/1e-6 == pytest.approx(1/(m - 2), rel=1e-3)         # E[1/chi²] with m degrees of freedom
    assert after[1].variance == pytest.approx(1, rel=1e-4) and total.variance == pytest.approx(1, rel=1e-4)

def test_terms_that_share_a_mean_image_lose_what_others_win():
    u = orthogonal(3)*.5
    parts = [white((4, 4)), Moments(white((4, 4)).second + u[:2].square().sum(0), u[:2]), Moments(u[1:].square().sum(0), u[1:])]
    second = sum(p.second for p in parts)
    total = Moments(second, torch.stack([u[0], math.sqrt(2)*u[1], u[2]]))
    after, whole = norm_moments(parts, total)
    assert whole.variance == pytest.approx(1) and after[0].variance > parts[0].variance/total.variance
    assert after[2].variance < parts[2].variance/total.variance
    assert all((p.second - p.patterns.square().sum(0) > -1e-12).all() for p in after)       # nothing but fluctuation is left

def test_a_sum_of_zeros_stays_zero():
    after, total = norm_moments([white((3, 3)).scaled(0)], white((3, 3)).scaled(0))
    assert after[0].variance == total.variance == 0

@pytest.mark.parametrize('norm', placements)
def test_shares_follow_the_norms_for_any_scale_of_the_weights(norm):
    "Where norms stand before the last stage, the size of stem and samplers does not matter"
    rule, model = layer_rules['glorot'], small(norm, blocks=(0, 1, 1))
    last = lambda scale: [r.share for r in predict_shares(model, 16, lambda o: rule(o)*(scale if o is model.samplers[1].up else 1)) if r.stage == 2]
    assert (last(1) == pytest.approx(last(9))) == (norm in ('samplers', 'blocks') and len(model.norms[1]) > 0)
