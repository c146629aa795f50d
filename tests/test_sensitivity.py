"Sensitivity, branches on a path and the gains of a start, against independent measurements; what a start shows on a model"
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from resnotes.blocks import SlopedReLU, StrictBlock
from resnotes.init import init_layers
from resnotes.networks import TowerConfig, build
from resnotes.sensitivity import (Probe, chain_correlation, chain_sensitivity, expected_branches, hessian_edge, last_features,
                                  linear_probe, measure_sensitivity, relu_correlation, start_gains, stretch_factor,
                                  update_ratios)
from resnotes.shares import predict_shares
from resnotes.summands import apply_gains, backward_factor, chain_gradients, chain_shares, harmonic_gains, relu_variance
from resnotes.unet import StrictUNet, UNetConfig

quick = settings(max_examples=30, deadline=None)
some_gains = st.lists(st.floats(0, 2), max_size=10)

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


# --- the closed forms --------------------------------------------------------------------------------------------------
@quick
@given(some_gains)
def test_sensitivity_squared_is_the_growth_of_the_gradient(gains):
    assert chain_sensitivity(gains)**2 == pytest.approx(chain_gradients(gains)[0])

@quick
@given(some_gains)
def test_branches_are_the_sum_of_shares_at_each_addition(gains):
    newest = [chain_shares(gains[:k + 1])[-1] for k in range(len(gains))]     # share of block k when it is added
    assert expected_branches(gains) == pytest.approx(sum(newest), abs=1e-12)
    assert expected_branches(gains) == pytest.approx(expected_branches(gains[::-1]))
    p0 = chain_shares(gains)[0]
    assert expected_branches(gains) <= -math.log(p0) + 1e-12

def test_the_mean_of_kappa_to_the_number_of_branches_is_the_squared_sensitivity():
    "Over all paths, enumerated"
    gains = [.3, 1., .7, .2, .5]
    p = [g*g/(1 + g*g) for g in gains]
    total = branches = 0.
    for path in np.ndindex(*(2,)*5):
        weight = math.prod(q if taken else 1 - q for q, taken in zip(p, path))
        total, branches = total + weight*backward_factor**sum(path), branches + weight*sum(path)
    assert total == pytest.approx(chain_sensitivity(gains)**2) and branches == pytest.approx(expected_branches(gains))

@pytest.mark.parametrize('slope', [0, .25, .6, 1])
def test_the_stretch_of_a_sloped_relu_is_the_slope_of_its_correlation(slope):
    h = 1e-7
    derivative = (1 - relu_correlation(1 - h, slope))/h
    assert stretch_factor(slope) == pytest.approx(derivative**2, rel=2e-3)
    x = torch.randn(4_000_000, generator=torch.Generator().manual_seed(1)).double()
    relu = SlopedReLU(slope)
    slope_square = torch.where(x > 0, 1., slope**2).mean()*relu.scale**2
    assert stretch_factor(slope) == pytest.approx((slope_square/relu(x).var()).item()**2, rel=4e-3)

def test_kappa():
    assert stretch_factor() == pytest.approx(backward_factor) == pytest.approx(1/(4*relu_variance**2))

@pytest.mark.parametrize('slope', [0, .5])
@pytest.mark.parametrize('c', [-.5, 0, .3, .9])
def test_correlations_behind_a_relu(slope, c):
    x, z = torch.randn(2, 2_000_000, generator=torch.Generator().manual_seed(3)).double()
    pair = torch.stack([F.leaky_relu(x, slope), F.leaky_relu(c*x + math.sqrt(1 - c*c)*z, slope)])
    assert relu_correlation(c, slope) == pytest.approx(torch.corrcoef(pair)[0, 1].item(), abs=3e-3)

def test_correlations_that_rounding_carried_too_far_are_cut():
    for one in (1., -1.): assert relu_correlation(one*(1 + 1e-9)) == relu_correlation(one)

def test_correlations_fall_to_zero_along_a_deep_chain_and_stay_without_gains():
    assert chain_correlation([0.]*9, .4) == .4
    deep = [chain_correlation([1.]*L, .9) for L in (0, 1, 5, 20, 80)]
    assert deep == sorted(deep, reverse=True) and abs(deep[-1]) < 1e-4

def test_finite_noise_has_a_ceiling():
    assert chain_sensitivity([1.]*200, .01) == pytest.approx(100*math.sqrt(2), rel=1e-3)
    assert chain_sensitivity([1.]*3, .001) == pytest.approx(chain_sensitivity([1.]*3), rel=.02)
    assert chain_sensitivity([1.]*9, .1) < chain_sensitivity([1.]*9, .01) < chain_sensitivity([1.]*9)


# --- against dense chains ----------------------------------------------------------------------------------------------
def stretched(gains, slope=0, n=300, draws=8):
    "Mean logarithm of the relative change along random directions, and its error"
    def normed(x): return (x - x.mean(0))/x.std(0, correction=0)
    relu, logs = SlopedReLU(slope), []
    for _ in range(draws):
        weights = torch.randn(len(gains), 2, n, n)
        def chain(x):
            for (w1, w2), g in zip(weights, gains):
                x = x + relu(normed(relu(normed(x)) @ w1)) @ w2*(g*x.std(0, correction=0).square().mean().sqrt()/math.sqrt(relu_variance*n))
            return x
        x, d = torch.randn(2, n, n)
        end, moved = torch.func.jvp(lambda t: chain(t), (x,), (d,))
        logs.append(.5*math.log((moved.square().mean()/end.var(0).mean()).item()))
    return np.mean(logs), np.std(logs, ddof=1)/math.sqrt(draws)

@pytest.mark.parametrize('gains, slope', [([1.]*6, 0), ([.8]*6, 0), ([1.5, .2]*3, 0), ([.8]*6, .4), (harmonic_gains(10), 0)])
def test_a_dense_chain_stretches_as_the_product_says(gains, slope):
    "2 % are what kappa, the 1 in 1 + kappa g^2 or the exponent cannot be off by, over six blocks"
    mean, error = stretched(gains, slope)
    closed = math.log(chain_sensitivity(gains, 0, slope))
    assert abs(mean - closed) < 4*error + .02
    kappa = stretch_factor(slope)
    for wrong in (lambda g: 1 + .9*kappa*g*g, lambda g: 1 + kappa**.5*g*g, lambda g: .9 + kappa*g*g, lambda g: kappa*g*g):
        mutant = sum(.5*math.log(wrong(g)/(1 + g*g)) for g in gains)
        assert abs(mean - mutant) > 4*error + .02, 'a wrong formula would pass'


# --- gains of a start --------------------------------------------------------------------------------------------------
def test_gains_away_from_borders_are_those_of_the_rules():
    for rule, nv in (('glorot_normal', 1), ('he_uniform', 2)):
        gains = start_gains(TowerConfig(4), 400, rule)
        assert gains == pytest.approx([math.sqrt(nv*relu_variance)]*4, rel=.01)
    stem, added = 2., 2*relu_variance                         # He's stem on one channel
    assert start_gains(TowerConfig(5, placement='none'), 400) == pytest.approx([math.sqrt(added/(stem + k*added)) for k in range(5)], rel=.01)
    assert start_gains(TowerConfig(5, placement='none'), 400) == start_gains(TowerConfig(5, placement='final'), 400)

@pytest.mark.parametrize('placement', ['none', 'samplers', 'blocks'])
def test_gains_of_a_unet_give_back_its_shares(placement):
    config = UNetConfig((2, 2, 2), placement=placement, in_channels=16, convs=1)
    gains = start_gains(config, 32, 'glorot_normal')
    model = StrictUNet(config)
    from resnotes.init import fillers
    rows = predict_shares(model, 32, fillers['glorot_normal'].variance)
    shares = [r.share for r in rows if r.stage == 0]
    assert chain_shares(gains[:2]) == pytest.approx(shares, rel=.02)     # the first stage: no sampler yet
    assert len(gains) == 6 and min(gains) > 0

@pytest.mark.parametrize('placement', ['none', 'blocks'])
def test_gains_are_what_blocks_add_in_a_tower_that_was_drawn(placement):
    "Ratio of deviations of what a block adds and of what it reads, over draws"
    config, found = TowerConfig(5, width=32, placement=placement), []
    for _ in range(10):
        model = build(config)
        init_layers(model, 'he_normal')
        x, row = model.stem(torch.randn(32, 1, 8, 8)), []
        for m in model.blocks:
            if isinstance(m, StrictBlock):
                def variance(t): return t.var((0, 2, 3), correction=0).mean()
                row.append((variance(m.branch(x))/variance(x)).sqrt().item())
            x = m(x)
        found.append(row)
    found = np.array(found)
    error = found.std(0, ddof=1)/math.sqrt(len(found))
    assert (abs(found.mean(0) - start_gains(config)) < 4*error + .02*found.mean(0)).all()

def test_asked_gains():
    asked = [.5, 0., 1.]
    assert start_gains(TowerConfig(3), 400, asked=asked) == pytest.approx(asked, rel=.01)

@pytest.mark.parametrize('call, error, words', [
    (lambda: start_gains(TowerConfig(3), asked=[1]), ValueError, r'one number per block \(3\), got 1'),
    (lambda: start_gains(TowerConfig(3), rule='depth_scaled_normal'), ValueError, 'rule must be one of'),
    (lambda: start_gains(TowerConfig(3, block='taki')), ValueError, 'strict blocks'),
    (lambda: start_gains('resnet20'), TypeError, 'tower or a strict U-Net'),
    (lambda: expected_branches([-1]), ValueError, 'gain must be'), (lambda: chain_sensitivity([1], noise=-1), ValueError, 'noise must be'),
    (lambda: last_features(nn.Linear(2, 2), torch.zeros(2, 2)), TypeError, 'model must have a head'),
    (lambda: measure_sensitivity(build('tower3'), torch.randn(4, 1, 8, 8), 0), ValueError, 'noise must be greater than 0')])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words): call()


# --- on a model --------------------------------------------------------------------------------------------------------
def tower(gains, placement='blocks'):
    model = build(TowerConfig(len(gains), placement=placement))
    init_layers(model, 'he_normal')
    apply_gains(model, gains)
    return model

@pytest.mark.parametrize('gains', [[0.]*5, [.6]*12, harmonic_gains(20)])
def test_measured_sensitivity_of_towers_without_borders(gains):
    x, found = torch.randn(64, 1, 8, 8), []
    for _ in range(5):
        model = tower(gains)
        for m in model.modules():
            if isinstance(m, nn.Conv2d): m.padding_mode = 'circular'
        found.append(math.log(measure_sensitivity(model, x)))
    assert abs(np.mean(found) - math.log(chain_sensitivity(gains, .01))) < 4*np.std(found)/math.sqrt(5) + .06

def test_measuring_leaves_a_model_as_it_was():
    model, x, y = tower([.5]*3).eval(), torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    before = {name: t.clone() for name, t in model.state_dict().items()}
    measure_sensitivity(model, x), linear_probe(model, x, y, folds=2), update_ratios(model, x, y), hessian_edge(model, x, y, iterations=2)
    assert not model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not model.head._forward_pre_hooks and all(p.grad is None for p in model.parameters())

def test_noise_is_relative_to_the_spread_of_the_batch():
    model = tower([.5]*4)
    x = torch.randn(32, 1, 8, 8)
    a, b = (measure_sensitivity(model, v, generator=torch.Generator().manual_seed(5)) for v in (x, 30*x))
    assert a == pytest.approx(b, rel=1e-3)

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Identity()
    def forward(self, x): return self.head(x.flatten(1))

def test_the_probe_reads_what_is_there_and_nothing_else():
    y = torch.arange(300) % 3
    x = torch.randn(300, 20)
    assert linear_probe(Flat(), x + 4*F.one_hot(y, 20), y).accuracy > .95
    blind = linear_probe(Flat(), x, y)
    assert blind == Probe(blind.accuracy, 1/3) and abs(blind.accuracy - 1/3) < 4*math.sqrt(2/9/300)

def test_the_probe_is_that_of_held_out_images():
    "As many features as images: a fit to the images themselves would read all of them"
    y = torch.arange(100) % 2
    assert linear_probe(Flat(), torch.randn(100, 400), y).accuracy < .7

@pytest.mark.parametrize('ridge', [.01, 3.])
def test_the_probe_is_ridge_regression(ridge):
    "Beside scikit-learn's, whose penalty stands beside sums over the features"
    from sklearn.linear_model import Ridge
    y = torch.arange(90) % 3
    x = torch.randn(90, 30) + .5*F.one_hot(y, 30)
    f, fold, right = (x - x.mean(0)).double(), torch.arange(90) % 5, 0
    f = f/(f + x.mean(0)).std()
    for held in range(5):
        seen, new = fold != held, fold == held
        fit = Ridge(ridge*30, fit_intercept=False).fit(f[seen], F.one_hot(y[seen]))
        right += (fit.predict(f[new]).argmax(1) == y[new].numpy()).sum()
    assert linear_probe(Flat(), x, y, ridge=ridge).accuracy == right/90

def test_update_ratios_by_hand():
    layer = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 1, bias=False))
    layer[1].weight.data.fill_(2)
    x = torch.randn(5, 3)
    ratios = update_ratios(layer, x, None, lambda out, y: out.sum())
    w = layer[0].weight
    assert ratios == pytest.approx({'0': (2*x.sum(0)).norm().item()/w.norm().item(), '1': abs((x @ w.T).sum().item())/2}, rel=1e-4)
    layer[1].weight.data.zero_()
    assert list(update_ratios(layer, x, None, lambda out, y: out.sum())) == ['0']

def bowl(*curvatures):
    layer = nn.Linear(len(curvatures), 1, bias=False)
    return layer, torch.diag(torch.tensor(curvatures).sqrt()), lambda out, y: out.square().sum()/2

def test_the_edge_of_a_parabola():
    layer, x, loss = bowl(7., 1.)
    assert hessian_edge(layer, x, None, loss) == pytest.approx(2/7, rel=1e-3)

def test_features_that_are_constant_cannot_be_read():
    y = torch.arange(40) % 4
    for x in (torch.ones(40, 6), torch.randn(6).expand(40, 6), torch.zeros(40, 6)):
        with pytest.raises(ValueError, match='model must have features that differ, got constant ones'): linear_probe(Flat(), x, y)
    assert linear_probe(Flat(), 1 + 1e-6*F.one_hot(y, 6), y).accuracy == 1   # hardly different is different

class Around(nn.Module):
    "A layer, one that the pass goes around, a frozen one, and one whose weight is computed"
    def __init__(self):
        super().__init__()
        self.seen, self.missed, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    def forward(self, x): return self.computed(self.frozen(self.seen(x).relu()))

def test_only_weights_that_learn_from_the_loss_count():
    model, x, y = Around(), torch.randn(12, 4), torch.arange(12) % 3
    F.cross_entropy(model(x), y).backward()
    want = (model.seen.weight.grad.norm()/model.seen.weight.norm()).item()
    assert update_ratios(model, x, y) == pytest.approx({'seen': want})
    torch.manual_seed(1); edge = hessian_edge(model, x, y, iterations=30)
    del model.missed
    torch.manual_seed(1); assert hessian_edge(model, x, y, iterations=30) == pytest.approx(edge, rel=1e-2)
    for measure in (update_ratios, hessian_edge):
        with pytest.raises(ValueError, match='model must have weights that learn from the loss, got none'): measure(model.requires_grad_(False), x, y)
        with pytest.raises(ValueError, match='learn from the loss, got none'): measure(model.requires_grad_(), x, y, lambda out, y: out.detach().sum())

def test_a_loss_without_curvature_has_no_edge():
    for iterations in (1, 5): assert hessian_edge(nn.Linear(3, 2), torch.randn(4, 3), None, lambda out, y: out.sum(), iterations) == math.inf
    layer, x, loss = bowl(7., 1.)
    both = nn.ModuleList([layer, nn.Linear(2, 1, bias=False)])
    both.forward = lambda x: (both[0](x), both[1](x))
    assert hessian_edge(both, x, None, lambda out, y: loss(out[0], y) + out[1].sum()) == pytest.approx(2/7, rel=1e-3)

class Headed(nn.Module):
    def __init__(self, calls=True):
        super().__init__()
        self.body, self.head, self.calls = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)), calls
    def forward(self, x): return (self.head if self.calls else self.head[0])(self.body(x))

def test_last_features_put_every_mode_back_and_name_a_head_that_is_not_called():
    model = build('tower3').train()
    model.blocks[0].branch.norm1.eval()
    modes = [m.training for m in model.modules()]
    last_features(model, torch.randn(4, 1, 8, 8))
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(ValueError, match='model must call its head with the features, got Headed'): last_features(Headed(False), torch.randn(4, 3))

@pytest.mark.parametrize('x', [torch.randn(1, 3), torch.ones(4, 3)])
def test_images_that_do_not_differ_have_no_sensitivity(x):
    with pytest.raises(ValueError, match=f'x must hold images that differ, got {len(x)} alike'): measure_sensitivity(Headed(), x)

def test_a_probe_names_features_that_are_no_numbers():
    with pytest.raises(ValueError, match='model must have finite features, got NaN or infinity'):
        linear_probe(Headed(), torch.full((20, 3), math.nan), torch.arange(20) % 2)

def test_gains_at_the_start_take_rules_by_every_name_and_need_norms():
    assert start_gains(TowerConfig(2), rule='kaiming_normal') == start_gains(TowerConfig(2), rule='he_normal')
    with pytest.raises(ValueError, match="rule must be one of 'lecun_normal', 'lecun_uniform', 'glorot_normal', "): start_gains(TowerConfig(2), rule='none such')
    with pytest.raises(ValueError, match='block must have norms'): start_gains(TowerConfig(2, batch_norm=False))
