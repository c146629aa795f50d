"Shares and gradients of a chain, and the gains of strict blocks"
import copy, math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from resnotes.blocks import StrictBlock
from resnotes.init import Changes, init_layers
from resnotes.summands import (apply_gains, backward_factor, branch_convs, chain_gradients, chain_shares,
                               harmonic_gains, relu_variance)

quick = settings(max_examples=40, deadline=None)
some_gains = st.lists(st.floats(0, 3), max_size=12)

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def stack(depth=4, channels=4):
    model = nn.Sequential(*[StrictBlock(channels) for _ in range(depth)])
    init_layers(model, 'he_normal')
    return model


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
    (lambda: chain_shares([math.nan]), ValueError, r'gains\[0\] must be a finite number'),
    (lambda: chain_gradients(['1']), TypeError, r'gains\[0\] must be a real number'),
    (lambda: harmonic_gains(0), ValueError, 'depth must be at least 1'),
    (lambda: harmonic_gains(3, -.1), ValueError, r'correlation must be a finite number in \[0, 1\]'),
    (lambda: apply_gains(nn.Linear(2, 2), [1]), ValueError, 'model must hold a StrictBlock'),
    (lambda: apply_gains(StrictBlock(2), [1, 2]), ValueError, r'one number per block \(1\), got 2'),
    (lambda: apply_gains(StrictBlock(2), [-1]), ValueError, r'gains\[0\] must be')])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words): call()


# --- one block, by force -------------------------------------------------------------------------------------------------
def test_a_relu_of_a_standard_normal_has_the_variance_named():
    z = torch.randn(2_000_000).double().relu()
    assert z.var().item() == pytest.approx(relu_variance, rel=.005)

def test_a_branch_sends_back_the_gradient_that_its_gain_says():
    "Mean square of J'd over that of d, for blocks without borders on a sum of variance 1"
    ratios = []
    for _ in range(6):
        block = StrictBlock(48)
        for conv in branch_convs(block): conv.padding_mode = 'circular'
        init_layers(block, 'he_normal')
        apply_gains(block, [.5])
        x = torch.randn(16, 48, 8, 8, requires_grad=True)
        d = torch.randn(16, 48, 8, 8)
        back, = torch.autograd.grad((block.branch(x)*d).sum(), x)
        ratios.append(back.square().mean().item()/.25)
    assert sum(ratios)/6 == pytest.approx(backward_factor, rel=.03)


# --- gains -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_apply_gains_sets_the_size_of_the_last_convolution_only(dtype):
    model = stack().to(dtype)
    first = [b.branch.conv1.weight.clone() for b in model]
    changes = apply_gains(model, [.5]*4)
    for b, w, change in zip(model, first, changes):
        assert b.branch.conv2.weight.dtype == dtype and torch.equal(b.branch.conv1.weight, w)
        w = b.branch.conv2.weight.detach().double()
        assert w.square().mean().item()*w[0].numel()*relu_variance == pytest.approx(.25, rel=.02)
        assert change.after == pytest.approx(w.square().mean().sqrt().item(), rel=1e-3)

def test_apply_gains_says_what_it_changed():
    model = stack(2)
    before = model[1].branch.conv2.weight.square().mean().sqrt().item()
    changes = apply_gains(model, [0., 2.])
    assert isinstance(changes, Changes) and len(changes.changed) == 2 and not changes.left
    assert [c.parameter for c in changes] == ['0.branch.conv2.weight', '1.branch.conv2.weight']
    assert changes[0].after == 0 and changes[1].before == pytest.approx(before)
    assert changes.others == len(list(model.parameters())) - 2

def test_branch_convs_are_those_of_the_branch_in_order():
    block = StrictBlock(3)
    assert branch_convs(block) == [block.branch.conv1, block.branch.conv2]

def test_apply_gains_refuses_before_it_changes_anything():
    model = stack()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError): apply_gains(model, [1, 2, -1, 1])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

def test_zero_weights_cannot_be_scaled_but_to_zero():
    model = stack()
    apply_gains(model, [0., 1, 1, 1])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='zeros in the last convolution of block 1'): apply_gains(model, [1.]*4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    apply_gains(model, [0.]*4)
    assert not model[0].branch.conv2.weight.any()

@pytest.mark.parametrize('norm', [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_weights_that_are_computed_cannot_be_scaled(norm):
    model = stack()
    norm(model[1].branch.conv2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='model must own the last weights of its branches, got computed ones'): apply_gains(model, [1.]*4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

def test_blocks_without_norms_and_shared_last_weights_cannot_be_scaled():
    bare = nn.Sequential(StrictBlock(4), StrictBlock(4, norm_layer=None))
    with pytest.raises(ValueError, match='model must have norms in the branches of its blocks'): apply_gains(bare, [1., 1.])
    shared = stack(2)
    shared[1].branch.conv2.weight = shared[0].branch.conv2.weight
    before = copy.deepcopy(shared.state_dict())
    with pytest.raises(ValueError, match='last weights of its own in each block, got shared ones'): apply_gains(shared, [1., 2.])
    assert all(torch.equal(v, before[k]) for k, v in shared.state_dict().items())
