"Batch norm: edge cases and properties beyond the chapter's own checks"
import copy, math

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, weight_norm

from resnotes.blocks import Conv
from resnotes.norm import BatchNorm, batch_norm, batch_norm_backward, bn_affine, fold_bn, norm_after, placements

shapes = st.tuples(st.integers(1, 5), st.integers(1, 4)).flatmap(
    lambda nc: st.lists(st.integers(1, 4), max_size=3).map(lambda space: (*nc, *space))).filter(
    lambda s: math.prod(s)//s[1] > 1)


def drawn(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(bn, seed=0):
    "`bn` in evaluation mode, with statistics and parameters far from their defaults"
    gen = torch.Generator().manual_seed(seed)
    bn.running_mean.normal_(generator=gen)
    bn.running_var.uniform_(.1, 10, generator=gen)
    for p in bn.parameters(): nn.init.normal_(p, generator=gen)
    return bn.eval()


@settings(max_examples=60, deadline=None)
@given(shape=shapes, scale=st.sampled_from([1e-3, 1., 1e3]), offset=st.sampled_from([0., 10.]), eps=st.sampled_from([1e-5, 1e-3]), seed=st.integers(0, 99))
def test_any_shape_agrees_with_torch(shape, scale, offset, eps, seed):
    x = (scale*drawn(shape, seed) + offset).requires_grad_()
    gamma, beta = (drawn((shape[1],), seed+i).requires_grad_() for i in (1, 2))
    grad = drawn(shape, seed+3)
    theirs = F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)
    y, saved = batch_norm(x, gamma, beta, eps)
    torch.testing.assert_close(y, theirs, rtol=1e-8, atol=1e-8)
    ours = batch_norm_backward(grad, saved)
    for a, b in zip(torch.autograd.grad(theirs, (x, gamma, beta), grad), (ours.x, ours.gamma, ours.beta)):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-7*max(1, 1/scale))


@pytest.mark.parametrize('shape', [(4, 2), (2, 2, 3), (3, 2, 1, 1), (1, 2, 2, 2)])
def test_autograd_through_the_forward_pass(shape):
    args = [drawn(s, i).requires_grad_() for i, s in enumerate((shape, (2,), (2,)))]
    assert torch.autograd.gradcheck(lambda *a: batch_norm(*a)[0], args)


@pytest.mark.parametrize('shape', [(1, 3), (1, 3, 1), (1, 3, 1, 1), (0, 3, 4, 4)])
def test_one_value_per_channel_is_refused_in_training(shape):
    with pytest.raises(ValueError, match='x must hold more than one value per channel'): BatchNorm(3)(torch.ones(shape))
    if shape[0]:
        with pytest.raises(ValueError, match='more than 1 value per channel'): F.batch_norm(torch.ones(shape), None, None, training=True)


def test_one_value_per_channel_is_fine_at_inference():
    bn, x = trained(BatchNorm(3)), torch.ones(1, 3, 1, 1)
    torch.testing.assert_close(bn(x), F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias))


def test_constant_channel():
    x = torch.stack([torch.full((4, 5), 7.), drawn((4, 5), dtype=torch.float32)], 1).requires_grad_()
    gamma, beta, grad = torch.tensor([2., 2.]), torch.tensor([3., 3.]), drawn((4, 2, 5), 1, torch.float32)
    y, saved = batch_norm(x, gamma, beta)
    torch.testing.assert_close(y[:, 0], torch.full((4, 5), 3.))
    expected, = torch.autograd.grad(F.batch_norm(x, None, None, gamma, beta, training=True), x, grad)
    torch.testing.assert_close(batch_norm_backward(grad, saved).x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_normalised_in_float32(dtype):
    x = (1000*drawn((8, 3, 6, 6)) + 300).to(dtype)
    gamma, beta = torch.ones(3), torch.zeros(3)
    y, saved = batch_norm(x, gamma, beta)
    assert y.dtype == dtype and saved.var.dtype == torch.float32 and saved.var.isfinite().all()
    exact = batch_norm(x.double(), gamma.double(), beta.double())[0]
    torch.testing.assert_close(y.double(), exact, rtol=2*torch.finfo(dtype).eps, atol=1e-4)
    assert batch_norm_backward(torch.ones_like(y), saved).x.dtype == dtype
    module = BatchNorm(3)
    assert module(x).dtype == dtype and module.running_var.dtype == torch.float32
    assert module.eval()(x).dtype == dtype and module(x).isfinite().all()


@pytest.mark.parametrize('training', [True, False])
def test_memory_layout_changes_nothing(training):
    x, bn = drawn((4, 3, 6, 5)), trained(BatchNorm(3).double()).train(training)
    expected, last = bn(x), bn(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(bn(x.transpose(2, 3)), expected.transpose(2, 3))
    torch.testing.assert_close(bn(x[:, :, ::2]), bn(x[:, :, ::2].contiguous()))


@pytest.mark.parametrize('momentum', [0., .1, 1., None])
def test_states_follow_torch(momentum):
    ours, theirs = BatchNorm(3, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    for i in range(5): ours(drawn((4, 3, 2, 2), i, torch.float32)), theirs(drawn((4, 3, 2, 2), i, torch.float32))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for k, v in theirs.state_dict().items(): torch.testing.assert_close(ours.state_dict()[k], v)
    theirs.load_state_dict(ours.state_dict())
    before = copy.deepcopy(ours.eval().state_dict())
    x = drawn((4, 3, 2, 2), 9, torch.float32)
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    for k, v in ours.state_dict().items(): assert torch.equal(v, before[k])


def test_no_component_along_one_and_x_hat():
    x, grad = drawn((6, 4, 5)), drawn((6, 4, 5), 1)
    saved = batch_norm(x, torch.ones(4).double(), torch.zeros(4).double(), eps=0)[1]
    d_x = batch_norm_backward(grad, saved).x
    assert d_x.sum((0, 2)).abs().max() < 1e-12 and (d_x*saved.x_hat).sum((0, 2)).abs().max() < 1e-12


@pytest.mark.parametrize('x, error, match', [
    (torch.ones(4, 2, dtype=torch.int64), TypeError, 'x must be a floating-point tensor, got torch.int64'),
    ([[1., 2.]], TypeError, 'x must be a floating-point tensor, got list'),
    (torch.ones(4), ValueError, r'x must have shape \[N, 3, \*\], got \(4,\)'),
    (torch.ones(4, 2, 3), ValueError, r'x must have shape \[N, 3, \*\], got \(4, 2, 3\)')])
@pytest.mark.parametrize('training', [True, False])
def test_bad_batches(x, error, match, training):
    with pytest.raises(error, match=match): BatchNorm(3).train(training)(x)


def test_bad_arguments():
    x, one = torch.ones(4, 2), torch.ones(2)
    with pytest.raises(ValueError, match=r'gamma must have shape \(2,\), got \(1, 2\)'): batch_norm(x, one[None], one)
    with pytest.raises(ValueError, match=r'beta must have shape \(2,\), got \(3,\)'): batch_norm(x, one, torch.ones(3))
    with pytest.raises(TypeError, match='gamma must be a tensor, got float'): batch_norm(x, 1., one)
    with pytest.raises(TypeError, match='beta must be a tensor, got int'): batch_norm(x, one, 0)
    with pytest.raises(ValueError, match='eps must be'): BatchNorm(2, eps=-1.)
    with pytest.raises(ValueError, match=r'momentum must be a finite number in \[0, 1\], got 1.5'): BatchNorm(2, momentum=1.5)
    with pytest.raises(TypeError, match='num_features must be a whole number'): BatchNorm(2.)
    with pytest.raises(ValueError, match=r'grad must have shape \(4, 2\), got \(4, 3\)'):
        batch_norm_backward(torch.ones(4, 3), batch_norm(x, one, one)[1])


@pytest.mark.parametrize('affine', [True, False])
def test_affine_map(affine):
    bn, x = trained(nn.BatchNorm1d(5, affine=affine).double()), drawn((3, 5))
    scale, shift = bn_affine(bn)
    torch.testing.assert_close(scale*x + shift, bn(x))


@pytest.mark.parametrize('bn, error, match', [
    (nn.BatchNorm2d(3), ValueError, 'bn must be in evaluation mode'),
    (BatchNorm(3), ValueError, 'bn must be in evaluation mode'),
    (nn.BatchNorm2d(3, track_running_stats=False).eval(), ValueError, 'bn must have running statistics'),
    (nn.LazyBatchNorm2d().eval(), ValueError, 'bn must have running statistics'),
    (nn.InstanceNorm2d(3, track_running_stats=True).eval(), TypeError, 'bn must be a batch norm, got InstanceNorm2d'),
    (nn.GroupNorm(1, 3).eval(), TypeError, 'bn must be a batch norm, got GroupNorm')])
def test_norms_without_an_affine_map(bn, error, match):
    with pytest.raises(error, match=match): bn_affine(bn)
    with pytest.raises(error, match=match): fold_bn(nn.Conv2d(3, 3, 1), bn)


layers = {'linear': (nn.Linear, dict(in_features=6, out_features=4), (3, 6), nn.BatchNorm1d),
          'conv1d': (nn.Conv1d, dict(in_channels=6, out_channels=4, kernel_size=3, dilation=2), (3, 6, 9), nn.BatchNorm1d),
          'conv2d': (nn.Conv2d, dict(in_channels=6, out_channels=4, kernel_size=3, padding=1, padding_mode='reflect'), (3, 6, 5, 5), nn.BatchNorm2d),
          'grouped': (nn.Conv2d, dict(in_channels=6, out_channels=4, kernel_size=3, groups=2), (3, 6, 5, 5), nn.BatchNorm2d),
          'depthwise': (nn.Conv2d, dict(in_channels=4, out_channels=4, kernel_size=3, groups=4), (3, 4, 5, 5), nn.BatchNorm2d),
          'conv3d': (nn.Conv3d, dict(in_channels=6, out_channels=4, kernel_size=2, stride=2), (3, 6, 4, 4, 4), nn.BatchNorm3d),
          'transposed1d': (nn.ConvTranspose1d, dict(in_channels=6, out_channels=4, kernel_size=3, stride=2), (3, 6, 5), nn.BatchNorm1d),
          'transposed2d': (nn.ConvTranspose2d, dict(in_channels=6, out_channels=4, kernel_size=3, stride=2, padding=1, output_padding=1), (3, 6, 5, 5), nn.BatchNorm2d),
          'transposed grouped': (nn.ConvTranspose2d, dict(in_channels=6, out_channels=4, kernel_size=3, stride=2, groups=2), (3, 6, 5, 5), nn.BatchNorm2d),
          'transposed depthwise': (nn.ConvTranspose3d, dict(in_channels=4, out_channels=4, kernel_size=2, groups=4), (3, 4, 3, 3, 3), nn.BatchNorm3d)}


@pytest.mark.parametrize('kind', layers)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype, limit', [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_folding(kind, bias, dtype, limit):
    torch.manual_seed(0)
    make, kwargs, shape, norm = layers[kind]
    layer, bn, x = make(**kwargs, bias=bias).to(dtype), trained(norm(4).to(dtype)), drawn(shape, dtype=dtype)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad(): folded, expected = fold_bn(layer, bn)(x), bn(layer(x))
    assert (folded - expected).norm() <= limit*expected.norm()
    for k, v in layer.state_dict().items(): assert torch.equal(v, before[k])
    ours = BatchNorm(4).to(dtype).eval()
    ours.load_state_dict(bn.state_dict())
    assert torch.equal(fold_bn(layer, ours)(x), folded)


@pytest.mark.parametrize('transposed', [False, True])
def test_folding_agrees_with_torch(transposed):
    torch.manual_seed(0)
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(6, 4, 3).eval()
    bn = trained(nn.BatchNorm2d(4))
    ours, theirs = fold_bn(conv, bn), fuse_conv_bn_eval(conv, bn, transpose=transposed)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_folding_keeps_what_the_layer_is():
    conv = nn.Conv2d(3, 4, 3).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_(False)
    folded = fold_bn(conv, trained(nn.BatchNorm2d(4, affine=False)))
    assert type(folded) is nn.Conv2d and folded.weight.dtype == folded.bias.dtype == torch.bfloat16
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded.weight.requires_grad and not folded.bias.requires_grad
    assert fold_bn(nn.Linear(3, 4), trained(nn.BatchNorm1d(4))).weight.requires_grad


@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_layers_that_cannot_be_folded():
    bn = nn.BatchNorm2d(4).eval()
    with pytest.raises(TypeError, match='got BatchNorm2d'): fold_bn(bn, bn)
    with pytest.raises(ValueError, match='bn must have 5 channels'): fold_bn(nn.Conv2d(4, 5, 1), bn)
    with pytest.raises(ValueError, match='bn must have 5 channels'): fold_bn(nn.ConvTranspose2d(4, 5, 1), bn)
    with pytest.raises(ValueError, match='layer must have a weight'): fold_bn(nn.LazyConv2d(4, 1), bn)
    hooked = nn.Conv2d(4, 4, 1)
    hooked.register_forward_hook(lambda m, i, o: 2*o)
    for layer in (parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), weight_norm(nn.Conv2d(4, 4, 1)), hooked):
        with pytest.raises(ValueError, match='layer must have no hooks and no parametrised weight'): fold_bn(layer, bn)


def test_placements_are_nested():
    sets = [set(places) for places in placements.values()]
    assert list(placements) == ['none', 'final', 'samplers', 'blocks']
    assert all(a < b for a, b in zip(sets, sets[1:])) and not sets[0]
    assert [[norm_after(p, w) for w in ('final', 'sampler', 'block')] for p in placements] == [
        [False]*3, [True, False, False], [True, True, False], [True]*3]


@pytest.mark.parametrize('placement, where', [('all', 'block'), (None, 'block'), ('blocks', 'blocks'), ('blocks', None)])
def test_unknown_placements(placement, where):
    with pytest.raises(ValueError, match='must be one of'): norm_after(placement, where)


@pytest.mark.parametrize('shift', [0., 100., 1000., -3000.])
def test_a_mean_far_from_zero_costs_no_digits(shift):
    "In training and in evaluation, beside the same in double precision; the input is what rounding made of it"
    torch.manual_seed(0)
    x, bn = (shift + torch.randn(32, 4, 6, 6)), BatchNorm(4, momentum=1.)
    nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    exact, theirs = copy.deepcopy(bn).double(), nn.BatchNorm2d(4, momentum=1.)
    theirs.load_state_dict(bn.state_dict())
    def off(y, z): return (y - z).abs().max().item()
    for mode in (True, False):
        for m in (bn, exact, theirs): m.train(mode)
        if not mode:
            for m in (bn, theirs): m.load_state_dict(exact.state_dict())     # the same rounded statistics
            exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in bn.state_dict().items()})
        y, z = bn(x), exact(x.double())
        assert off(y, z) < 4e-6
        assert off(y, z) <= 2*off(theirs(x), z) + 1e-6

class OneWeightStandardised(nn.Conv2d):
    def forward(self, x): return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

class NormAndReLU(nn.BatchNorm2d):
    def forward(self, x): return super().forward(x).relu()

def test_what_computes_in_its_own_way_or_has_hooks_is_not_folded():
    plain, bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3).eval()
    for layer, norm in ((OneWeightStandardised(3, 3, 1), bn), (plain, NormAndReLU(3).eval())):
        with pytest.raises(ValueError, match=f'layer and bn must compute as .*, got {type(layer).__name__} and {type(norm).__name__}'): fold_bn(layer, norm)
    bn.register_forward_hook(lambda m, i, o: 2*o)
    with pytest.raises(ValueError, match='bn must have no hooks'): fold_bn(plain, bn)

def test_a_convolution_of_even_size_is_folded_with_its_own_padding():
    conv, bn = Conv(3, 4, 2).layer(), trained(nn.BatchNorm2d(4))
    x = drawn((2, 3, 5, 5)).float()
    torch.testing.assert_close(fold_bn(conv, bn)(x), bn(conv(x)))
