"Shares of a U-Net's summands by both ways, and balanced gains"
import copy, math
from dataclasses import replace

import pytest
import torch
from torch import nn

from resnotes.blocks import StrictBlock
from resnotes.init import fillers, init_layers
from resnotes.moments import white
from resnotes.norm import placements
from resnotes.shares import (balanced_gains, branch_moments, measure_shares, own_variance, predict_shares,
                             split_moments, split_sum)
from resnotes.summands import apply_gains, harmonic_gains
from resnotes.tables import Rows
from resnotes.unet import StrictUNet, UNetConfig

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def small(placement='samplers', blocks=(1, 2, 1), width=4, **changes):
    model = StrictUNet(UNetConfig(blocks, width=width, placement=placement, convs=1, **changes))
    init_layers(model, 'he_normal')
    return model

def last(rows): return [r.share for r in rows if r.stage == 2]


# --- what is refused -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('call, error, words', [
    (lambda: predict_shares(nn.Linear(2, 2), 8), TypeError, 'model must be a StrictUNet'),
    (lambda: predict_shares(small(skip='add'), 16), ValueError, "skip must be 'none'"),
    (lambda: balanced_gains(UNetConfig((1, 1, 1), block='plain'), 16), ValueError, "kind 'strict'"),
    (lambda: balanced_gains((1, 1, 1), rule='lecun'), ValueError, 'must be one of'),
    (lambda: balanced_gains((1, 1, 1), size=3), ValueError, 'size must be at least 4, got 3'),
    (lambda: balanced_gains((1,)*7, size=9), ValueError, 'size must be at least 16, got 9'),
    (lambda: balanced_gains(-1), ValueError, 'config must be at least 0'),
    (lambda: balanced_gains('strict_unet48'), TypeError, 'config must be a whole number'),
    (lambda: balanced_gains((1, 1)), ValueError, 'blocks must be an odd number'),
    (lambda: predict_shares(small(up='nearest'), 16), ValueError, 'got ResizeConv'),
    (lambda: predict_shares(small(), (8, 0)), ValueError, 'size must be at least 4, got 0'),
    (lambda: measure_shares(small(), torch.zeros(1, 3, 16, 16)), ValueError, r'x must be \[batch, 1')])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words): call()

def test_a_trained_shift_is_refused():
    model = small('blocks')
    nn.init.ones_(model.stages[0][1].bias)
    with pytest.raises(ValueError, match='shift 0'): measure_shares(model, torch.randn(2, 1, 16, 16))


# --- following the sum -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('placement', placements)
@pytest.mark.parametrize('size', [(17, 20), (8, 8)])
def test_split_terms_add_up_to_the_stream_for_any_sides(placement, size):
    model, x = small(placement), torch.randn(3, 1, *size)
    *_, (stage, parts) = split_sum(model, x)
    assert stage == 2 and parts.shape == (5, 3, 4, *size)
    seen = []
    handle = model.head.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(x)
    handle.remove()
    def centre(t): return t - t.mean((0, 2, 3), keepdim=True)
    total, stream = centre(parts.sum(0)), centre(seen[0])
    if placement == 'none': assert torch.allclose(parts.sum(0), seen[0], atol=1e-3*seen[0].std().item())
    deviation = (total - stream).square().mean()/stream.square().mean()
    assert deviation < (1e-8 if placement in ('none', 'final') else .02)   # a removed constant meets the zero padding

def test_split_terms_know_the_epsilon_of_a_norm():
    "Here as large as the variance, so that every term is smaller by the root of two"
    model, x, seen = small('blocks'), torch.randn(3, 1, 8, 8), []
    norm = model.stages[-1][-1]
    norm.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    model(x)
    norm.eps = seen.pop()[0].var((0, 2, 3)).mean().item()
    model(x)
    *_, (_, parts) = split_sum(model, x)
    assert isinstance(norm, nn.BatchNorm2d) and torch.allclose(parts.sum(0), seen[0][1], atol=.05*seen[0][1].std().item())

@pytest.mark.parametrize('placement', placements)
def test_both_ways_list_the_same_summands(placement):
    model = small(placement)
    a, b = predict_shares(model, (16, 20)), measure_shares(model, torch.randn(2, 1, 16, 20))
    assert [(r.stage, r.index) for r in a] == [(r.stage, r.index) for r in b]
    for rows in (a, b):
        assert isinstance(rows, Rows) and list(rows.to_frame().columns) == ['stage', 'index', 'std', 'share']
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

def test_zero_gains_leave_only_the_stem():
    model = small('none')
    apply_gains(model, [0.]*4)
    for rows in (predict_shares(model, 16), measure_shares(model, torch.randn(2, 1, 16, 16))):
        assert last(rows) == pytest.approx([1, 0, 0, 0, 0])

def test_a_contribution_of_ones_own_takes_the_place_of_a_branch():
    "Every block copies what the stem has: all terms are equal"
    *_, (_, parts) = split_moments(small('none'), 16, contribution=lambda block, parts, total: parts[0])
    assert [p.variance for p in parts] == pytest.approx([parts[0].variance]*5)

@pytest.mark.parametrize('placement', placements)
def test_shares_follow_the_norms_for_any_scale_of_the_weights(placement):
    "Where norms stand before the last stage, the size of stem and samplers does not matter"
    model, variance = small(placement, blocks=(0, 1, 1)), fillers['glorot_normal'].variance
    up = model.samplers[1].up
    one, nine = (last(predict_shares(model, 16, lambda o: variance(o)*(scale if o is up else 1))) for scale in (1, 9))
    normed = placement in ('samplers', 'blocks') and len(model.norms[1]) > 0
    assert (one == pytest.approx(nine)) == normed


@pytest.mark.parametrize('slope, gap', [(1, 10), (.4, 4)])
def test_shares_of_a_sloped_unet_are_those_measured(slope, gap):
    "A sloped ReLU leaves less of a constant, and so less of a checkerboard behind an up-sampler"
    config = UNetConfig((2, 2, 2), width=16, placement='samplers', convs=1, in_channels=16, negative_slope=slope)
    model, found = StrictUNet(config), []
    for _ in range(8):
        init_layers(model, 'glorot_normal')
        found.append(last(measure_shares(model, torch.randn(8, 16, 26, 26))))
    found = torch.tensor(found)
    mean, error = found.mean(0), found.std(0)/math.sqrt(8)
    closed, plain = (torch.tensor(last(predict_shares(StrictUNet(c), 26, fillers['glorot_normal'].variance)))
                     for c in (config, replace(config, negative_slope=0)))
    assert ((mean - closed).abs() < 4*error + .03*closed).all()
    assert ((plain - mean)/error)[3:5].mean() > gap     # blocks in front of the up-sampler: not the shares of plain ReLUs

# --- balanced gains ----------------------------------------------------------------------------------------------------------
def exact(model, variance):
    "Weights whose mean square is what the rule says, without scatter"
    init_layers(model, 'he_normal')
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            m.weight.data.mul_(math.sqrt(variance(m)/own_variance(m)))

@pytest.mark.parametrize('placement', placements)
@pytest.mark.parametrize('rule', ['glorot_normal', 'he_normal'])
@pytest.mark.parametrize('size', [32, (17, 23)])
def test_balanced_gains_make_predicted_shares_equal(placement, rule, size):
    config = UNetConfig((2, 2, 2), width=4, placement=placement, convs=1)
    model = StrictUNet(config)
    exact(model, fillers[rule].variance)
    apply_gains(model, balanced_gains(config, size, rule))
    assert last(predict_shares(model, size)) == pytest.approx([1/7]*7, rel=2e-3)

@pytest.mark.parametrize('rule', fillers)
def test_balanced_gains_know_every_rule_of_a_layer(rule):
    config = UNetConfig((1, 1, 1), width=4, convs=1)
    model, more = StrictUNet(config), dict(depth=3) if rule.startswith('depth_scaled') else {}
    exact(model, lambda layer: fillers[rule].variance(layer, **more))
    apply_gains(model, balanced_gains(config, 16, rule))
    assert last(predict_shares(model, 16)) == pytest.approx([1/4]*4, rel=2e-3)

@pytest.mark.parametrize('slope', [.3, 1])
def test_balanced_gains_of_a_sloped_unet_make_its_shares_equal(slope):
    config = UNetConfig((2, 2, 2), width=4, placement='samplers', convs=1, negative_slope=slope)
    model = StrictUNet(config)
    exact(model, fillers['glorot_normal'].variance)
    apply_gains(model, balanced_gains(config, 32))
    assert last(predict_shares(model, 32)) == pytest.approx([1/7]*7, rel=2e-3)
    apply_gains(model, balanced_gains(replace(config, negative_slope=0), 32))
    assert last(predict_shares(model, 32)) != pytest.approx([1/7]*7, rel=.02)
    assert balanced_gains(replace(config, negative_slope=1), 256)[2:4] == pytest.approx([1/math.sqrt(3)]*2, rel=.01)

def test_balanced_gains_draw_nothing_and_do_not_depend_on_width():
    before = torch.get_rng_state()
    narrow, wide = (balanced_gains(UNetConfig((1, 2, 1), width=n, in_channels=n, convs=1), 24) for n in (4, 32))
    assert narrow == pytest.approx(wide) and torch.equal(before, torch.get_rng_state())

def test_balanced_gains_take_counts_for_a_configuration_and_any_rule():
    assert balanced_gains((1, 2, 1), 16) == balanced_gains(UNetConfig((1, 2, 1)), 16)
    assert balanced_gains(3, 16) == balanced_gains([3], 16) == balanced_gains(UNetConfig((3,)), 16)
    by_he = balanced_gains((1, 2, 1), 16, 'he_normal')
    assert balanced_gains((1, 2, 1), 16, fillers['he_uniform'].variance) == by_he
    assert balanced_gains((1, 2, 1), 16, 'kaiming_normal') == by_he != balanced_gains((1, 2, 1), 16)
    assert balanced_gains((0, 0, 0), 16) == []

def test_balanced_gains_of_a_normed_tower_are_harmonic_but_for_borders():
    gains = balanced_gains(UNetConfig((8,), placement='blocks'), 64)
    assert gains[1:] == pytest.approx(harmonic_gains(8)[1:], rel=.03)

def test_moments_of_a_branch_without_norms_are_not_told():
    with pytest.raises(ValueError, match='block must have norms in its branch'):
        branch_moments(StrictBlock(4, norm_layer=None), white((6, 6)), [.1, .1])
