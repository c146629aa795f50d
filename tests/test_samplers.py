"Edge cases and properties of the samplers, tap maps and the tap-aware filler"
import copy, itertools, math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from resnotes.blocks import Conv
from resnotes.checks import largest
from resnotes.init import init_layers
from resnotes.samplers import (BlurPool, DownConv, DownPool, ResizeConv, SubPixel, UpConv, checkerboard_energy, compose_kernels,
                               downsampler, flat_normal, icnr, tap_counts, tap_map, upsampler, variance_map)

DOWN = ['conv2', 'conv3', 'conv5', 'average', 'blur']
UP = ['transposed2', 'transposed3', 'transposed5', 'nearest', 'bilinear', 'subpixel']
odd_able = lambda name: not name.endswith('2')
quick = settings(max_examples=40, deadline=None)

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


# --- counting ---------------------------------------------------------------------------------------------------------
@quick
@given(k=st.integers(1, 9), s=st.integers(1, 5), p=st.integers(0, 4), d=st.integers(1, 4))
def test_counts_sum_to_kernel_and_follow_the_dealing_rule(k, s, p, d):
    n = tap_counts(k, s, p, d)
    assert n.shape == (s,) and n.sum() == k
    assert torch.equal(n, torch.tensor([sum(j*d % s == (o+p) % s for j in range(k)) for o in range(s)]))
    if math.gcd(d, s) == 1: assert n.max() - n.min() == (k % s > 0)
    else: assert (n == 0).any()

def test_counts_mix_numbers_and_axes():
    assert tap_counts((3, 4), (2, 1)).tolist() == [[8], [4]]
    assert tap_counts((3, 3, 3), 2).sum() == 27
    assert tap_counts([5], (2,)).tolist() == [3, 2]

@pytest.mark.parametrize('layer, size', [
    (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2), (3, 5)), (nn.Conv2d(4, 6, (2, 5), stride=(1, 3), padding=(0, 2), groups=2), (7, 9)),
    (nn.Conv1d(2, 2, 4, stride=3, dilation=2, padding=3), 11), (nn.ConvTranspose3d(2, 2, (1, 2, 3), stride=(1, 2, 3)), (2, 2, 3)),
    (nn.Conv2d(3, 3, 3, padding='same', padding_mode='circular'), 5), (nn.ConvTranspose2d(2, 2, 2, stride=3), 4), (nn.Conv2d(2, 2, 1, stride=2), 5)])
def test_tap_map_matches_the_layer_itself(layer, size):
    "Weights and inputs of one through the very layer, channels divided out; backward by its own gradient"
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    dims = layer.weight.ndim - 2
    x = torch.ones(1, layer.in_channels, *((size,)*dims if isinstance(size, int) else size), requires_grad=True)
    y = layer(x)
    assert torch.equal(tap_map(layer, size), (y[0, 0]*layer.groups/layer.in_channels).round().long())
    y.sum().backward()
    assert torch.equal(tap_map(layer, size, backward=True), (x.grad[0, 0]*layer.groups/layer.out_channels).round().long())

def test_tap_map_of_lonely_pixels_and_empty_phases():
    assert tap_map(nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1), 1).tolist() == [[1]]
    assert (tap_map(nn.ConvTranspose1d(1, 1, 2, stride=3), 4) == 0).sum() == 3
    assert tap_map(nn.Conv2d(1, 1, 1, stride=2), 4, backward=True).sum() == 4

def test_maps_of_subclasses_and_frozen_layers():
    class Mine(nn.Conv2d): pass
    layer = Mine(2, 2, 3, padding=1).requires_grad_(False)
    assert tap_map(layer, 3).tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    with torch.no_grad(): assert torch.equal(tap_map(layer, 3, backward=True), tap_map(layer, 3))

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_variance_map_reads_the_weights_of_any_type(dtype):
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2).to(dtype)
    w = layer.weight.detach().double()
    expected = F.conv_transpose2d(torch.ones(1, 4, 4, 4, dtype=torch.float64), w**2, stride=2, padding=1, groups=2).mean((0, 1))
    torch.testing.assert_close(variance_map(layer, 4), expected)

def test_variance_map_chains_and_is_linear():
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, groups=1)
    m = torch.rand(9, 9, dtype=torch.float64)
    torch.testing.assert_close(variance_map(conv, 9, .5, moment=2*m), 2*variance_map(conv, 9, .5, moment=m))
    out = torch.rand(5, 5, dtype=torch.float64)       # forward and backward maps are each other's adjoint, up to channels
    a = (variance_map(conv, 9, .5, moment=m)*out).sum()/3
    b = (variance_map(conv, 9, .5, backward=True, moment=out)*m).sum()/5
    torch.testing.assert_close(a, b)

@pytest.mark.parametrize('call, message', [
    (lambda: tap_counts(0), 'kernel_size must be at least 1, got 0'), (lambda: tap_counts(3, padding=-1), 'padding must be at least 0'),
    (lambda: tap_counts(3.), 'kernel_size must be a whole number'), (lambda: tap_map(nn.Linear(2, 2), 3), 'layer must be one of Conv1d'),
    (lambda: tap_map(nn.Conv2d(1, 1, 3), (5,)), 'size must have 2 sides for Conv2d'), (lambda: tap_map(nn.Conv2d(1, 1, 3), 0), 'size must be at least 1'),
    (lambda: variance_map(nn.Conv2d(1, 1, 3), 5, variance=-1), 'variance must be one number or one per tap (3, 3)'),
    (lambda: variance_map(nn.Conv2d(1, 1, 3), 5, variance=torch.ones(2)), 'variance must be one number or one per tap (3, 3)'),
    (lambda: variance_map(nn.Conv2d(1, 1, 3), 5, moment=torch.ones(4, 4)), 'moment must have shape (5, 5), got (4, 4)'),
    (lambda: variance_map(nn.Conv2d(1, 1, 3), 5, moment=3.), 'moment must have shape (5, 5), got ()'), (lambda: variance_map(nn.ReLU(), 5), 'layer must be one of Conv1d')])
def test_counting_refuses(call, message):
    with pytest.raises((ValueError, TypeError)) as e: call()
    assert message in str(e.value)


# --- samplers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name, convs, bias', [*itertools.product(DOWN, (0, 2), (True, False))])
def test_down_halves_every_size(name, convs, bias):
    down = downsampler(name, 3, 5, convs, bias)
    for h, w in ((1, 1), (1, 2), (2, 2), (5, 8), (13, 26)):
        x = torch.randn(1, 3, h, w)
        if (h % 2 or w % 2) and not odd_able(name):
            with pytest.raises(ValueError, match='x must have even sides for kernel_size 2'): down(x)
        else: assert down(x).shape == (1, 5, (h+1)//2, (w+1)//2)
    assert any(n.endswith('bias') for n, _ in down.named_parameters()) == bias

@pytest.mark.parametrize('name, convs', [*itertools.product(UP, (0, 2))])
def test_up_reaches_every_size_it_says_and_no_other(name, convs):
    up = upsampler(name, 3, 2, convs)
    for h, w in ((1, 1), (1, 3), (4, 3)):
        x = torch.randn(2, 3, h, w)
        assert up(x).shape == (2, 2, 2*h, 2*w)
        for dh, dw in itertools.product((-2, -1, 0, 1), repeat=2):
            size = (2*h+dh, 2*w+dw)
            if {dh, dw} <= ({-1, 0} if odd_able(name) else {0}): assert up(x, torch.Size(size)).shape[-2:] == size
            else:
                with pytest.raises(ValueError, match='size must be'): up(x, size)

@pytest.mark.parametrize('make', [DownConv, DownPool, UpConv, ResizeConv, SubPixel])
def test_a_sampler_is_one_convolution_with_a_bias_unless_told_otherwise(make):
    (conv,) = (m for m in make(4, 4).modules() if hasattr(m, 'kernel_size') and hasattr(m, 'weight'))
    assert conv.kernel_size == (3, 3) and conv.bias is not None

def test_counts_of_axes_that_are_all_told_are_the_product_of_each():
    both = tap_counts((3, 5), (2, 3), (1, 2), (1, 1))
    assert torch.equal(both, tap_counts(3, 2, 1)[:, None]*tap_counts(5, 3, 2))

def test_a_single_image_must_have_even_sides_too():
    with pytest.raises(ValueError, match=r'even sides for kernel_size 2, got \(5, 4\)'): downsampler('conv2', 3, 5)(torch.randn(3, 5, 4))

def test_a_pool_is_the_one_that_its_mode_names():
    assert isinstance(DownPool(2, 2).pool, nn.AvgPool2d) and isinstance(DownPool(2, 2, 'blur').pool, BlurPool)

@pytest.mark.parametrize('make', [lambda: DownConv(4, 6, 5, convs=2), lambda: DownPool(4, 6, convs=2), lambda: UpConv(6, 4, 5, convs=2),
                                  lambda: ResizeConv(6, 4, convs=2), lambda: SubPixel(6, 4, convs=2)])
def test_the_bound_of_a_sampler_counts_every_weight(make, monkeypatch):
    weights = sum(p.numel() for p in make().parameters() if p.ndim > 1)
    monkeypatch.setitem(largest, 'weights', weights)
    make()
    monkeypatch.setitem(largest, 'weights', weights - 1)
    with pytest.raises(ValueError, match=f'must make at most {weights - 1} weights, got about {weights}'): make()

def test_without_padding_the_first_output_has_the_most_taps():
    assert tap_counts(3, 2).tolist() == [2, 1] and tap_counts(3, 2, 1).tolist() == [1, 2] and tap_counts(3, 2, dilation=2).tolist() == [3, 0]

def test_cropping_is_the_only_difference_between_odd_and_even():
    x = torch.randn(1, 2, 4, 4)
    for name in ('transposed3', 'transposed5', 'subpixel'):
        up = upsampler(name, 2, 2)
        torch.testing.assert_close(up(x)[..., :7, :7], up(x, (7, 7)))

@pytest.mark.parametrize('name', DOWN + UP)
def test_memory_layouts_and_batches(name):
    f = (downsampler if name in DOWN else upsampler)(name, 4, 4, convs=1).double()
    x = torch.randn(3, 4, 6, 8, dtype=torch.float64)
    y = f(x)
    torch.testing.assert_close(f(x.to(memory_format=torch.channels_last)), y)
    torch.testing.assert_close(f(x.transpose(2, 3).contiguous().transpose(2, 3)), y)
    torch.testing.assert_close(f(x.repeat(1, 1, 1, 2)[..., :8]), y)
    torch.testing.assert_close(torch.cat([f(o[None]) for o in x]), y)

@pytest.mark.parametrize('name, dtype', [*itertools.product(DOWN + UP, (torch.bfloat16, torch.float16))])
def test_half_precision(name, dtype):
    f = (downsampler if name in DOWN else upsampler)(name, 4, 4, convs=1)
    x = torch.randn(2, 4, 6, 6)
    y = f(x).detach()
    z = f.to(dtype)(x.to(dtype))
    assert z.dtype == dtype
    torch.testing.assert_close(z.float(), y, atol=.05, rtol=.05)

@pytest.mark.parametrize('name', DOWN + UP)
def test_linear_and_trainable(name):
    f = (downsampler if name in DOWN else upsampler)(name, 3, 3, convs=1, bias=False).double()
    x, y = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(f(2*x - 3*y), 2*f(x) - 3*f(y))
    f(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in f.parameters())

@pytest.mark.parametrize('name', DOWN + UP)
def test_state_dict_round_trip(name):
    make = lambda: (downsampler if name in DOWN else upsampler)(name, 2, 2, convs=1)
    a, b, x = make(), make(), torch.randn(1, 2, 4, 4)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x)) and set(a.state_dict()) == {n for n, _ in a.named_parameters()}

def test_pools_keep_constants_and_average():
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    for side in (1, 2, 5): torch.testing.assert_close(BlurPool()(torch.full((1, 2, side, side), 3.)), torch.full((1, 2, (side+1)//2, (side+1)//2), 3.))
    centre = BlurPool()(x)[0, 0, 1, 1]
    k = torch.tensor([1., 2, 1], dtype=torch.float64)/4
    torch.testing.assert_close(centre, (x[0, 0, 1:4, 1:4]*k[:, None]*k).sum())
    assert DownPool(1, 1).pool(torch.ones(1, 1, 5, 5)).eq(1).all()

@pytest.mark.parametrize('dims, scale', [(1, 2), (1, 3), (2, 2), (2, 3), (3, 2)])
def test_icnr_copies_as_many_phases_as_there_are(dims, scale):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims-1](2, 3*scale**dims, 3)
    w = icnr(conv, scale=scale)
    assert len(w.unique(dim=0)) == 3 and all(torch.equal(w[i], w[i - i % scale**dims]) for i in range(len(w)))
    assert w.var().item() == pytest.approx(2/(2*3**dims), rel=.5)


def test_icnr_copies_phases_and_leaves_the_sampler_clean():
    sub = SubPixel(4, 3)
    w = sub.conv.weight.reshape(3, 4, 4, 3, 3)
    assert (w == w[:, :1]).all()
    assert checkerboard_energy(sub(torch.randn(2, 4, 5, 5))) < 1e-12
    init_layers(sub, flat_normal)
    assert checkerboard_energy(sub(torch.randn(2, 4, 5, 5))) > 1e-4
    icnr(sub.conv, fill=nn.init.kaiming_uniform_, nonlinearity='relu')
    assert checkerboard_energy(sub(torch.randn(2, 4, 5, 5))) < 1e-12
    assert icnr(nn.Conv2d(2, 9, 1), scale=3).requires_grad

@pytest.mark.parametrize('call, message', [
    (lambda: downsampler('max', 1, 1), "name must be one of 'conv2'"), (lambda: upsampler('conv3', 1, 1), "name must be one of 'transposed2'"),
    (lambda: DownConv(0, 1), 'in_channels must be at least 1'), (lambda: DownConv(1, 1, kernel_size=1), 'kernel_size must be at least 2'),
    (lambda: UpConv(1, 2.5), 'out_channels must be a whole number'), (lambda: UpConv(1, 1, convs=-1), 'convs must be at least 0'),
    (lambda: ResizeConv(1, 1, 'cubic'), "mode must be one of 'nearest', 'bilinear'"), (lambda: UpConv(1, 1)(torch.ones(1, 1, 3, 3), (6,)), 'size must be'),
    (lambda: UpConv(1, 1)(torch.ones(1, 1, 3, 3), 6), 'size must be (height 5 or 6, width 5 or 6)'),
    *[(lambda up=up: up(1, 1)(torch.ones(1, 3, 3)), 'x must be [N, channels, height, width], got shape (1, 3, 3)') for up in (UpConv, ResizeConv, SubPixel)],
    (lambda: icnr(nn.Conv2d(1, 4, 1), scale=0), 'scale must be at least 1'), (lambda: icnr(nn.ConvTranspose2d(4, 1, 1)), 'layer must be a plain convolution, got ConvTranspose2d'),
    (lambda: icnr(nn.ReLU()), 'layer must be one of Conv1d'),
    (lambda: compose_kernels(torch.ones(2, 3, 3, 3), torch.ones(2, 2, 3, 3)), 'conv_weight must take 3 channels, got 2')])
def test_samplers_refuse(call, message):
    with pytest.raises((ValueError, TypeError)) as e: call()
    assert message in str(e.value)

@quick
@given(k=st.integers(2, 5), l=st.sampled_from([1, 3, 5]), s=st.integers(1, 3), c=st.integers(1, 3))
def test_compose_kernels_is_the_composition(k, l, s, c):
    u, w = torch.randn(2, c, k, k, dtype=torch.float64), torch.randn(3, c, l, l, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    both = F.conv2d(F.conv_transpose2d(x, u, stride=s), w, padding=l-1)     # nothing is cut off, so borders agree too
    torch.testing.assert_close(F.conv_transpose2d(x, compose_kernels(u, w), stride=s), both)


# --- checkerboard energy ----------------------------------------------------------------------------------------------
@quick
@given(h=st.integers(1, 9), w=st.integers(1, 9), s=st.integers(2, 4), seed=st.integers(0, 99))
def test_energy_is_a_projection(h, w, s, seed):
    "Least squares on the phases' indicators gives the same share, whatever the size"
    x = torch.randn(h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + .5
    phase = (torch.arange(h)[:, None] % s*s + torch.arange(w) % s).flatten()
    design = F.one_hot(phase, s*s).double()
    fit = design @ (torch.linalg.pinv(design) @ x.flatten())
    share = ((fit - x.mean())**2).sum()/(x**2).sum()
    torch.testing.assert_close(checkerboard_energy(x, s), share, atol=1e-10, rtol=1e-8)
    assert 0 <= share <= 1 + 1e-12

@quick
@given(h=st.integers(1, 7), w=st.integers(1, 7), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_energy_ignores_scale_and_repeated_pixels(h, w, scale, seed):
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(checkerboard_energy(x*scale), checkerboard_energy(x))
    assert checkerboard_energy(x.repeat_interleave(2, -1).repeat_interleave(2, -2)) < 1e-20

def test_energy_of_odd_inputs():
    assert checkerboard_energy(torch.zeros(5, 5)) == 0 and checkerboard_energy(torch.ones(1, 1)) == 0
    assert checkerboard_energy(torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)) == .5
    line = torch.tensor([1., -1]).repeat(3, 4)
    assert checkerboard_energy(line, (2,)) == 1 and checkerboard_energy(line, (3, 2)) == 1
    x = torch.randn(4, 3, 8, 6)
    torch.testing.assert_close(checkerboard_energy(x.to(memory_format=torch.channels_last)), checkerboard_energy(x))
    assert torch.isfinite(checkerboard_energy(torch.full((4, 4), 6e4, dtype=torch.float16)))
    assert checkerboard_energy(x.bfloat16()).dtype == torch.float64
    assert checkerboard_energy(x.requires_grad_()).requires_grad is False

@pytest.mark.parametrize('x, stride', [(torch.ones(4, 4), 1), (torch.ones(4, 4), 2.), (torch.ones(4), 2), (torch.ones(0, 3, 4, 4), 2), ([[1., 2.]], 2), (torch.ones(4, 4)*1j, 2)])
def test_energy_refuses(x, stride):
    with pytest.raises((ValueError, TypeError), match='stride must|x must'): checkerboard_energy(x, stride)


# --- tap-aware filler -------------------------------------------------------------------------------------------------
layers = {
    'up 3': lambda: nn.ConvTranspose2d(8, 512, 3, stride=2, padding=1), 'up 5 grouped': lambda: nn.ConvTranspose2d(16, 512, 5, stride=2, padding=2, groups=4),
    'up 4': lambda: nn.ConvTranspose2d(8, 512, 4, stride=2, padding=1), 'up (3, 4) by (2, 3)': lambda: nn.ConvTranspose2d(8, 512, (3, 4), stride=(2, 3)),
    'up dilated': lambda: nn.ConvTranspose2d(8, 512, 3, stride=2, dilation=3), 'up 1-D': lambda: nn.ConvTranspose1d(64, 2048, 5, stride=3)}

@pytest.mark.parametrize('name, tied', [*itertools.product(layers, (False, True))])
def test_flat_forward(name, tied):
    layer = layers[name]()
    assert flat_normal(layer, gain=2., tied=tied) is layer.weight
    m = variance_map(layer, 9)
    inner = m[tuple(slice(n//3, 2*n//3) for n in m.shape)]
    n = layer.weight.numel()/math.prod(layer.stride)/math.prod(layer.kernel_size)
    torch.testing.assert_close(inner, torch.full_like(inner, 4.), atol=0, rtol=6*math.sqrt(2/n))
    if tied:
        pick = [[[j for j in range(k) if j*d % s == r] for r in range(s)] for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation)]
        w = layer.weight.detach()
        sums = [sum(w[(..., *tap)] for tap in itertools.product(*phase)) for phase in itertools.product(*pick)]
        for o in sums: torch.testing.assert_close(o, sums[0], atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('mode', ['fan_in', 'fan_out'])
def test_flat_backward_and_level(mode):
    conv = nn.Conv2d(64, 128, 3, stride=2, padding=1)
    flat_normal(conv, mode=mode, generator=torch.Generator().manual_seed(1))
    forward, backward = variance_map(conv, 13)[2:-2, 2:-2], variance_map(conv, 13, backward=True)[2:-2, 2:-2]
    test = (forward, 1.) if mode == 'fan_in' else (backward, 1.)
    torch.testing.assert_close(test[0], torch.full_like(test[0], test[1]), atol=.1, rtol=0)
    assert backward.max()/backward.min() < 1.1
    torch.testing.assert_close(forward.mean()/backward.mean(), torch.tensor(64*4/128., dtype=torch.float64), atol=.1, rtol=0)

def test_flat_is_plain_where_nothing_skips():
    for layer in (nn.Linear(300, 200), nn.Conv2d(30, 40, 3), nn.ConvTranspose2d(30, 40, 3)):
        flat_normal(layer, tied=True, generator=torch.Generator().manual_seed(2))
        fan = layer.weight.numel()/(200 if isinstance(layer, nn.Linear) else 40)
        assert abs(layer.weight.var()*fan - 1) < 6*math.sqrt(2/layer.weight.numel())

def test_flat_repeats_with_its_generator_and_fills_half_precision():
    a, b = (nn.ConvTranspose2d(4, 4, 3, stride=2) for _ in range(2))
    for tied in (False, True):
        for layer in (a, b): flat_normal(layer, tied=tied, generator=torch.Generator().manual_seed(7))
        assert torch.equal(a.weight, b.weight) and a.weight.requires_grad
    half = flat_normal(nn.ConvTranspose2d(64, 64, 3, stride=2).bfloat16(), tied=True)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    cl = nn.ConvTranspose2d(8, 8, 3, stride=2).to(memory_format=torch.channels_last)
    w = flat_normal(cl, tied=True)
    torch.testing.assert_close(w[..., 1, 1], w[..., ::2, ::2].sum((-1, -2)), atol=1e-5, rtol=1e-4)

def test_tied_keeps_constants_through_a_whole_up_sampler():
    up = UpConv(8, 8, 5, convs=2)
    init_layers(up, flat_normal, tied=True, generator=torch.Generator().manual_seed(3))
    y = up(torch.randn(1, 8, 1, 1).expand(-1, -1, 12, 12))
    inner = y[..., 8:-8, 8:-8]
    torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner), atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('call, message', [
    (lambda: flat_normal(nn.ConvTranspose2d(1, 1, 2, stride=3)), 'layer must have a tap in every phase, got kernel_size 2, stride 3, dilation 1: 1 of 3 are empty'),
    (lambda: flat_normal(nn.Conv2d(1, 1, 3, stride=2, dilation=2)), 'layer must have a tap in every phase'),
    (lambda: flat_normal(torch.ones(3, 3)), 'layer must be a weight layer, got Tensor'),
    (lambda: flat_normal(nn.Conv2d(1, 1, 3), gain=-1), 'gain must be greater than 0'),
    (lambda: flat_normal(nn.Conv2d(1, 1, 3), mode='both'), "mode must be one of 'fan_in', 'fan_out'")])
def test_flat_refuses(call, message):
    with pytest.raises((ValueError, TypeError)) as e: call()
    assert message in str(e.value)

@pytest.mark.parametrize('norm', [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize('fill, layer', [(flat_normal, nn.ConvTranspose2d(2, 2, 3, stride=2)), (icnr, nn.Conv2d(2, 8, 3))])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_computed_weights_are_not_filled_in_vain(norm, fill, layer):
    layer = norm(copy.deepcopy(layer))
    before = layer.weight.clone()
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=f'layer must be a layer that owns its weight, got a {kind} that computes it from other parameters'): fill(layer)
    assert torch.equal(layer.weight, before)

@pytest.mark.parametrize('kernel', [2, 4, 8])
def test_taps_of_an_even_kernel_are_counted_with_its_padding(kernel):
    "As a convolution of ones counts them"
    layer, x = Conv(1, 1, kernel).layer(), torch.ones(1, 1, 12, 12, requires_grad=True)
    nn.init.ones_(layer.weight)
    y = layer(x)
    assert torch.equal(tap_map(layer, 12), y[0, 0].long())
    assert torch.equal(tap_map(layer, 12, backward=True), torch.autograd.grad(y.sum(), x)[0][0, 0].long())
    torch.testing.assert_close(variance_map(layer, 12, 2.).float(), 2*y[0, 0])

@pytest.mark.parametrize('count', [tap_map, variance_map])
def test_counting_leaves_the_random_state_alone(count):
    layer = nn.Conv2d(1, 1, 3)
    state = torch.random.get_rng_state()
    count(layer, 5)
    assert torch.equal(torch.random.get_rng_state(), state)

def test_phases_are_filled_alike_by_a_function_that_returns_nothing():
    layer = nn.Conv2d(2, 8, 3)
    def fill(w): w.copy_(torch.arange(w.numel()).view_as(w))
    w = icnr(layer, fill)
    assert torch.equal(w[::4], torch.arange(36.).view(2, 2, 3, 3)) and torch.equal(w[3::4], w[::4])
