"Properties of the fillers and fans beyond what the chapter shows."
import subprocess, sys
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from resnotes.init import *

convs = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
fillers = [glorot_normal, glorot_uniform, he_normal, he_uniform,
           lambda t, **k: depth_scaled_normal(t, 7, **k), lambda t, **k: depth_scaled_uniform(t, 7, **k)]


@given(st.sampled_from(convs), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))
def test_transposing_swaps_the_fans(conv, i, o, k, s, g):
    other = convs[(convs.index(conv) + 3) % 6]
    a, b = fans(conv(i*g, o*g, k, stride=s, groups=g)), fans(other(o*g, i*g, k, stride=s, groups=g))
    assert (a.fan_in, a.fan_out) == pytest.approx((b.fan_out, b.fan_in))


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_rules_agree_where_they_must(n, m):
    assert glorot_variance(n, m) == pytest.approx(glorot_variance(m, n))
    assert min(1/n, 1/m) <= glorot_variance(n, m)*(1+1e-12) and glorot_variance(n, m) <= max(1/n, 1/m)*(1+1e-12)
    assert depth_scaled_variance(n, 1) == pytest.approx(lecun_variance(n))
    assert he_variance(n, 1.) == pytest.approx(lecun_variance(n))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(fillers), st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 2**31))
def test_filling_is_in_place_and_seeded(fill, shape, seed):
    w = torch.empty(shape)
    out = fill(w, generator=torch.Generator().manual_seed(seed))
    assert out is w and torch.isfinite(w).all()
    assert torch.equal(w, fill(torch.empty(shape), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('truncated', [False, True])
def test_number_formats(dtype, truncated):
    w = he_normal(torch.empty(256, 256, dtype=dtype), truncated=truncated, generator=torch.Generator().manual_seed(0))
    assert w.dtype == dtype and w.double().var().item() == pytest.approx(2/256, rel=.03)


@pytest.mark.parametrize('layout', [lambda w: w.to(memory_format=torch.channels_last), lambda w: w.transpose(0, 1), lambda w: w[:, ::2]])
def test_layouts(layout):
    base = torch.zeros(64, 64, 3, 3)
    w = glorot_normal(layout(base), generator=torch.Generator().manual_seed(0))
    assert w.var().item() == pytest.approx(glorot_variance(*fans(w)), rel=.05)


def test_parameters_keep_their_gradient_flag():
    layer = nn.Linear(4, 4)
    assert he_normal(layer) is layer.weight and layer.weight.requires_grad and layer.weight.grad is None


@pytest.mark.parametrize('normalise', [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize('fill', fillers)
def test_a_computed_weight_is_not_filled_in_vain(fill, normalise):
    layer = normalise(nn.Linear(4, 6))
    with pytest.raises(ValueError, match='tensor must be a layer that owns its weight, got a .*Linear that computes it'): fill(layer)
    with pytest.raises(ValueError, match='owns its weight'): init_layers(nn.Sequential(nn.Linear(2, 4), layer), fill)
    assert fans(layer) == (4, 6)


def test_tied_and_frozen_weights_are_filled():
    a, b = nn.Linear(64, 64), nn.Linear(64, 64).requires_grad_(False)
    b.weight = a.weight
    init_layers(nn.Sequential(a, b), he_normal)
    assert a.weight is b.weight and a.weight.var().item() == pytest.approx(2/64, rel=.2) and not b.bias.requires_grad


def test_truncated_stays_within_its_cut():
    w = glorot_normal(torch.empty(400, 400), truncated=True)
    assert w.abs().max() <= 2/.8796*(1/400)**.5*(1+1e-3)


def test_init_layers_visits_everything():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, stride=2), nn.GroupNorm(2, 8),
                          nn.Flatten(), nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.InstanceNorm1d(8), nn.Linear(8, 2, bias=False))
    for p in model.parameters(): nn.init.constant_(p, 7.)
    seen = []
    assert init_layers(model, lambda layer: seen.append(layer)) is model
    assert seen == [m for m in model if isinstance(m, weight_layers)]
    for m in model:
        if getattr(m, 'bias', None) is not None: assert (m.bias == 0).all()
        if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)): assert (m.weight == 1).all()


def test_init_layers_passes_arguments_on():
    model = init_layers(nn.Sequential(nn.Linear(64, 640), nn.ReLU(), nn.Linear(640, 64)), he_normal, mode='fan_out')
    assert model[0].weight.var().item() == pytest.approx(2/640, rel=.05)


w = torch.empty(4, 4)
@pytest.mark.parametrize('call, error, says', [
    (lambda: depth_scaled_normal(w, depth=0), ValueError, 'depth must be at least 1, got 0'),
    (lambda: depth_scaled_uniform(w, depth=1.5), TypeError, 'depth must be a whole number, got 1.5'),
    (lambda: depth_scaled_normal(w, depth=3, c=-1), ValueError, 'c must be greater than 0, got -1'),
    (lambda: depth_scaled_normal(w, depth=3, c=float('nan')), ValueError, 'c must be a finite number'),
    (lambda: depth_scaled_variance(0, 3), ValueError, 'fan must be greater than 0, got 0'),
    (lambda: glorot_variance(3, -1), ValueError, 'fan_out must be greater than 0, got -1'),
    (lambda: lecun_variance('3'), TypeError, "fan_in must be a real number, got '3'"),
    (lambda: he_variance(3, float('inf')), ValueError, 'negative_slope must be a finite number'),
    (lambda: he_uniform(w, mode='both'), ValueError, "mode must be one of 'fan_in', 'fan_out', got 'both'"),
    (lambda: glorot_uniform(torch.empty(3)), ValueError, r'tensor must have at least two dimensions, got shape \(3,\)'),
    (lambda: fans(torch.empty(3)), ValueError, r'layer must have at least two dimensions, got shape \(3,\)'),
    (lambda: he_normal([1, 2]), TypeError, 'tensor must be a tensor or one of Linear.*got list'),
    (lambda: glorot_normal(torch.empty(3, 0)), ValueError, r'must not be empty, got shape \(3, 0\)'),
    (lambda: glorot_normal(torch.empty(3, 3, dtype=torch.int)), TypeError, 'floating-point type, got torch.int32'),
    (lambda: fans([1, 2]), TypeError, 'layer must be a tensor or one of Linear.*got list'),
    (lambda: fans(nn.LazyLinear(3)), ValueError, 'layer has no weight yet'),
    (lambda: init_layers(nn.ReLU(), he_normal), ValueError, 'model must hold a weight layer, got ReLU'),
    (lambda: init_layers(w, he_normal), TypeError, 'model must be an nn.Module, got Tensor'),
    (lambda: init_layers(nn.Linear(2, 2), 'he'), TypeError, "fill must be a function of a layer, got 'he'"),
])
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says): call()


def test_import_is_light():
    code = ("import sys, time; a = time.perf_counter(); import torch; b = time.perf_counter(); import resnotes.init; c = time.perf_counter();"
            "heavy = {'fastai', 'matplotlib', 'pandas', 'sklearn', 'torchvision'} & set(sys.modules);"
            "print((c-b)/(b-a)); sys.exit(str(heavy) if heavy else 0)")
    ratios = []
    for _ in range(3):
        run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        ratios.append(float(run.stdout))
    assert min(ratios) < .10
