"Signal and gradient: edge cases of the measurement, properties of the closed forms"
import math

import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from resnotes.init import init_layers
from resnotes.networks import build
from resnotes.signal import (LayerSignal, StreamMoments, bn_gradient_growth, left_as_found, max_depth, measure, plain_growth, plot_signal,
                             post_relu_moments, residual_growth, second_moment_gain)
from resnotes.tables import Rows


def snapshot(model):
    return ({k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state(), [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()])


def same(a, b):
    return (all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:])


def conv_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(.5),
                         nn.Conv2d(8, 4, 1), nn.Flatten(), nn.LazyLinear(5))


def ready(size=4):
    net = conv_net()
    net(torch.zeros(2, 3, size, size))
    return net


# --- left_as_found

def test_what_happens_inside_is_undone():
    net = ready()
    before = snapshot(net)
    with pytest.raises(RuntimeError, match='stop'), torch.no_grad(), left_as_found(net):
        assert torch.is_grad_enabled()
        net(torch.randn(2, 3, 4, 4))
        assert not same(before, snapshot(net))
        raise RuntimeError('stop')
    assert same(before, snapshot(net)) and torch.is_grad_enabled()


def test_gradients_flow_even_in_inference_mode():
    net = nn.Linear(3, 2)
    with torch.inference_mode(), left_as_found(net): assert net(torch.ones(1, 3)).requires_grad


# --- measure

def autograd_reference(net, x):
    "Outputs of linear layers and their gradients, from a graph written out by hand"
    outs = []
    for m in net:
        x = m(x.clone())    # a clone, so that in-place layers leave the kept output alone
        outs.append(x)
    grads = torch.autograd.grad(x.square().sum(), outs)
    return [(o.double().square().mean().item(), g.double().square().mean().item()) for m, o, g in zip(net, outs, grads) if isinstance(m, nn.Linear)]


@pytest.mark.parametrize('inplace', [False, True])
def test_matches_autograd(inplace):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace), nn.Linear(9, 7), nn.ReLU(inplace), nn.Linear(7, 3))
    x = torch.randn(11, 6)
    rows = measure(net, x, loss=lambda y: y.square().sum())
    for row, (forward, gradient) in zip(rows, autograd_reference(net, x), strict=True):
        assert row.forward == pytest.approx(forward, rel=1e-5) and row.gradient == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize('training', [True, False])
def test_model_left_as_found(training):
    net = ready().train(training)
    net[0].weight.requires_grad_(False)
    before = snapshot(net)
    rows = measure(net, torch.randn(1, 3, 4, 4) if not training else torch.randn(2, 3, 4, 4))
    # drawing the batch above moved the generator, so compare everything but it, then the generator alone
    assert all(torch.equal(before[0][k], v) for k, v in net.state_dict().items())
    state = torch.random.get_rng_state()
    again = measure(net, torch.ones(2, 3, 4, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert again == measure(net, torch.ones(2, 3, 4, 4))
    assert all(p.grad is None for p in net.parameters()) and not net[0].weight.requires_grad
    assert [r.kind for r in rows] == ['Conv2d', 'Conv2d', 'Linear'] and net.training == training
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


def test_accumulated_gradients_survive():
    net = nn.Linear(3, 2)
    net(torch.ones(1, 3)).sum().backward()
    kept = net.weight.grad.clone()
    measure(net, torch.randn(5, 3))
    assert torch.equal(net.weight.grad, kept)


def test_everything_restored_after_an_error():
    net = ready()
    before = snapshot(net)
    def broken(y): raise RuntimeError('stop')
    with pytest.raises(RuntimeError, match='stop'): measure(net, torch.ones(2, 3, 4, 4), loss=broken)
    with pytest.raises(RuntimeError): measure(net, torch.ones(2, 5, 4, 4))     # wrong channels
    assert same(before, snapshot(net)) and not any(m._forward_hooks for m in net.modules())


def test_under_no_grad_and_inference_mode():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    plain = measure(net, x)
    with torch.no_grad():
        assert measure(net, x) == plain and not torch.is_grad_enabled()
    with torch.inference_mode(): assert measure(net, x) == plain


def test_frozen_model_and_integer_input():
    net = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 4), nn.Linear(4, 2)).requires_grad_(False)
    rows = measure(net, torch.randint(10, (5, 3)))
    assert [r.name for r in rows] == ['1', '2'] and all(r.gradient > 0 for r in rows)


def test_batch_of_one_pixel_and_one_sample():
    row, = measure(nn.Conv2d(2, 3, 1), torch.randn(1, 2, 1, 1))
    assert row.kind == 'Conv2d' and row.forward > 0 and row.gradient > 0


def test_memory_format_and_strides_do_not_matter():
    net, x = ready(), torch.randn(2, 3, 4, 4)
    want = [(r.forward, r.gradient) for r in measure(net.eval(), x)]
    for y in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        for row, w in zip(measure(net, y), want): assert (row.forward, row.gradient) == pytest.approx(w, rel=1e-5)
    wide = measure(net.to(memory_format=torch.channels_last), x)
    for row, w in zip(wide, want): assert (row.forward, row.gradient) == pytest.approx(w, rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    net = nn.Linear(8, 8, bias=False).to(dtype)
    with torch.no_grad(): net.weight.copy_(300*torch.eye(8))     # 300^2 is beyond float16
    row, = measure(net, torch.ones(2, 8, dtype=dtype))
    assert row.forward == pytest.approx(300**2, rel=.01) and math.isfinite(row.gradient)


def test_autocast():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 8)
    want = measure(net, x)
    with torch.autocast('cpu', torch.bfloat16): got = measure(net, x)
    for a, b in zip(got, want): assert (a.forward, a.gradient) == pytest.approx((b.forward, b.gradient), rel=.1)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)
    def forward(self, x, shift): return self.first(self.first(x)) + shift


def test_shared_layers_unused_layers_and_several_inputs():
    rows = measure(Shared(), torch.randn(4, 3), torch.ones(4, 3))
    assert [r.name for r in rows] == ['first', 'first'] and rows[0] != rows[1]


def test_layer_that_the_loss_does_not_see():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        def forward(self, x): return self.a(x), self.b(x)
    rows = measure(Two(), torch.randn(4, 3), loss=lambda out: out[0].sum())
    assert rows[0].gradient > 0 and rows[1].gradient == 0
    with pytest.raises(TypeError, match='loss must be given when the model returns a tuple'): measure(Two(), torch.randn(4, 3))


def test_choice_of_layers():
    net, x = ready().eval(), torch.randn(2, 3, 4, 4)
    assert [r.name for r in measure(net, x, layers=['0', '4'])] == ['0', '4']
    assert [r.kind for r in measure(net, x, layers=nn.ReLU)] == ['ReLU']
    assert len(measure(net, x, layers=nn.Module)) == len(list(net.modules()))
    assert measure(net, x, layers=[''])[0].kind == 'Sequential'


def test_a_loss_may_be_a_module():
    x = torch.randn(4, 3)
    row, = measure(nn.Linear(3, 2), x, loss=nn.Sequential(nn.Flatten(0), nn.Linear(8, 1, bias=False)).requires_grad_(False))
    assert row.gradient > 0


def test_checkpointed_segment():
    class Saved(nn.Module):
        def __init__(self, use):
            super().__init__()
            self.inner, self.use = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), use
        def forward(self, x): return checkpoint(self.inner, x, use_reentrant=False) if self.use else self.inner(x)
    torch.manual_seed(0)
    a, b = Saved(True), Saved(False)
    b.load_state_dict(a.state_dict())
    x = torch.randn(3, 4)
    for r, s in zip(measure(a, x), measure(b, x), strict=True): assert r[2:] == pytest.approx(s[2:])


def test_rows_make_a_table():
    rows = measure(nn.Linear(3, 2), torch.randn(2, 3))
    assert isinstance(rows, Rows) and repr(rows).startswith('name  kind    forward') and '<table' in rows._repr_html_()
    pd.testing.assert_frame_equal(rows.to_frame(), pd.DataFrame(rows))
    table = rows.to_frame()
    assert list(table.columns) == list(LayerSignal._fields) == ['name', 'kind', 'forward', 'gradient']


@pytest.mark.parametrize('call, error, words', [
    (lambda: measure(torch.relu, torch.ones(1)), TypeError, 'model must be an nn.Module'),
    (lambda: measure(nn.ReLU(), torch.ones(1)), ValueError, 'model must hold a layer to measure'),
    (lambda: measure(nn.LazyLinear(3), torch.ones(1, 2)), ValueError, 'run one batch through it first'),
    (lambda: measure(nn.Linear(2, 2)), ValueError, 'batch must hold at least one tensor'),
    (lambda: measure(nn.Linear(2, 2), [[1., 2.]]), TypeError, 'batch must hold tensors, got list'),
    (lambda: measure(nn.Linear(2, 2), torch.ones(0, 2)), ValueError, 'batch must not be empty'),
    (lambda: measure(nn.Linear(2, 2), torch.ones(1, 2), loss=lambda y: y), ValueError, 'loss must return one number'),
    (lambda: measure(nn.Linear(2, 2), torch.ones(1, 2), loss=lambda y: torch.tensor(1.)), ValueError, 'loss must depend'),
    (lambda: measure(nn.Linear(2, 2), torch.ones(1, 2), loss=torch.ones(2)), TypeError, 'loss must be a function of the output, got Tensor'),
    (lambda: measure(nn.Linear(2, 2), torch.ones(1, 2), layers=['x']), ValueError, 'layers must be names'),
    (lambda: measure(nn.Linear(2, 2), torch.ones(1, 2), layers=''), TypeError, "layers must be a class, a tuple of classes or a list of names, got ''"),
    (lambda: measure(nn.Linear(2, 2), torch.ones(1, 2), layers=('0', '1')), TypeError, 'layers must be a class, a tuple'),
    (lambda: measure(nn.Linear(2, 2), torch.ones(1, 2), layers=None), TypeError, 'layers must be a class, a tuple'),
    (lambda: plain_growth(-1., 3), ValueError, 'gain must be greater than 0'),
    (lambda: residual_growth(-.1, 3), ValueError, 'gain must be a finite number in'),
    (lambda: residual_growth(.1, 2.5), TypeError, 'depth must be a whole number'),
    (lambda: post_relu_moments(1., -1), ValueError, 'depth must be at least 0'),
    (lambda: post_relu_moments(1., 1, mean=2., second=1.), ValueError, 'second must be a finite number in'),
    (lambda: post_relu_moments(1., 1, mean=math.nan), ValueError, 'mean must be a finite number'),
    (lambda: post_relu_moments(1., 1, mean='0'), TypeError, "mean must be a real number, got '0'"),
    (lambda: bn_gradient_growth(1., 3, added=0.), ValueError, 'added must be greater than 0'),
    (lambda: second_moment_gain('tanh'), ValueError, "one of 'identity', 'relu'"),
    (lambda: max_depth(torch.int64), TypeError, 'dtype must be a floating-point'),
    (lambda: max_depth(torch.float16, c=0.), ValueError, 'c must be greater than 0'),
    (lambda: plot_signal([]), ValueError, 'rows must hold at least one'),
])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words): call()


# --- closed forms

def test_closed_forms_in_numbers():
    assert plain_growth(3., 4) == pytest.approx(81) and residual_growth(.5, 3) == pytest.approx(1.5**3)
    assert second_moment_gain('identity') == 1 and second_moment_gain('relu') == .5
    first, second = post_relu_moments(2., 1)
    assert first == (0, 1) and second.mean == pytest.approx(1/math.sqrt(math.pi)) and second.second == pytest.approx(2)


@pytest.mark.parametrize('activation, f', [('identity', nn.Identity()), ('relu', nn.ReLU())])
def test_gain_is_what_an_activation_leaves(activation, f):
    square = f(torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))**2
    assert abs(square.mean() - second_moment_gain(activation)) < 4*square.std()/len(square)**.5


@pytest.mark.parametrize('rule, gains', [('he_normal', (1., 1.)), ('lecun_normal', (.5, .5)), ('glorot_normal', (.75, .25))])
def test_predicted_growth_is_measured(rule, gains):
    "Two ReLU layers, from width 300 to 100 and back, averaged over draws of the weights"
    gen, runs = torch.Generator().manual_seed(1), []
    net = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 300))
    for _ in range(100):
        init_layers(net, rule, generator=gen)
        start, narrow, end = measure(net, torch.randn(20, 300, generator=gen), layers=['0', '2', '4'])
        runs.append([narrow.forward/start.forward, end.forward/start.forward, start.gradient/end.gradient])
    runs = torch.tensor(runs, dtype=torch.float64)
    whole = plain_growth(gains[0], 1)*plain_growth(gains[1], 1)     # the ends are equally wide: the same both ways
    for got, want in zip(runs.T, (gains[0], whole, whole)):
        assert abs(got.mean() - want) < 4*got.std()/len(got)**.5 < .08*want


gains, depths = st.floats(.1, 3), st.integers(0, 100)


@given(gains, depths, depths)
def test_growths_multiply_over_depth(gain, a, b):
    for growth in (plain_growth, residual_growth):
        assert math.log(growth(gain, a + b)) == pytest.approx(math.log(growth(gain, a)) + math.log(growth(gain, b)), abs=1e-6)


@given(st.floats(.1, 5), st.integers(0, 100), st.integers(0, 100), st.floats(.1, 3), st.floats(.5, 3))
def test_bn_growth_splits_at_any_block(gain, a, b, added, variance):
    whole = bn_gradient_growth(gain, a + b, added, variance)
    assert whole == pytest.approx(bn_gradient_growth(gain, a, added, variance)*bn_gradient_growth(gain, b, added, variance + added*a), rel=1e-9)


@given(st.floats(.1, 5), st.integers(0, 200), st.floats(.1, 4))
def test_bn_identity_telescopes(gain, depth, variance):
    assert bn_gradient_growth(gain, depth, variance=variance) == pytest.approx((variance/gain + depth)/(variance/gain), rel=1e-9)


@given(st.floats(1e-3, 2), st.integers(0, 60), st.floats(.1, 10))
@settings(deadline=None)
def test_stream_is_homogeneous_and_above_the_bound(s, depth, scale):
    one, many = post_relu_moments(s, depth), post_relu_moments(s, depth, second=scale**2)
    assert len(one) == depth + 1 and isinstance(one[0], StreamMoments)
    assert many[-1].second == pytest.approx(scale**2*one[-1].second) and many[-1].mean == pytest.approx(scale*one[-1].mean)
    assert one[-1].variance >= residual_growth(s/4, depth)*(1 - 1e-9)


def test_extremes():
    assert plain_growth(1e-300, 2) == 0. and plain_growth(2, 10**6) == math.inf and residual_growth(0, 10**9) == 1
    assert plain_growth(3., 0) == residual_growth(3., 0) == bn_gradient_growth(1., 0) == 1
    assert [max_depth(d) for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)] == [2.**16, 2.**22, 2.**48, 2.**106]


def test_plot_draws_on_given_axes():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    _, ax = plt.subplots()
    rows = measure(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(2, 3))
    assert plot_signal(iter(rows), ax) is ax and len(ax.lines) == 2 and ax.get_yscale() == 'log'
    assert plot_signal(rows) is not ax
    plt.close('all')


@pytest.mark.parametrize('parts', [lambda m: m.blocks, lambda m: [m]])
def test_every_layer_of_a_compiled_model_is_measured(parts):
    model, x = build('tower4'), torch.randn(4, 1, 8, 8)
    plain = measure(model, x)
    for part in parts(model): part.compile(backend='eager')
    model(x)
    assert measure(model, x) == plain and len(plain) == 10

class Remembers(nn.Module):
    "Fills a buffer in its first pass, and has one whose rows are the same memory"
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer('place', torch.ones(4).expand(3, 4))
        self.register_buffer('first', None)
    def forward(self, x):
        if self.first is None: self.first = x.detach().mean(0)
        return self.layer(x) + self.first + self.place[0]

def test_buffers_that_a_pass_fills_are_empty_again():
    model = Remembers()
    rows = measure(model, torch.randn(2, 4))
    assert model.first is None and len(rows) == 1 and torch.equal(model.place, torch.ones(3, 4))

def test_layers_that_return_no_real_tensor_are_named():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, dtype=torch.complex64)
        def forward(self, x): return self.layer(x + 0j).abs()
    with pytest.raises(ValueError, match='called by the forward pass and return a real tensor, got none that did'): measure(Complex(), torch.randn(2, 4))
