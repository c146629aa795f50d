"What `residual_branches` counts, what it leaves as it was, and what it refuses"
import copy, gc, weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings, strategies as st
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.checkpoint import checkpoint
from torch.nn.utils import parametrizations

from resnotes.branches import Branch, residual_branches, trace
from resnotes.listener import followed, which_features
from resnotes.networks import build
from resnotes.resnet import ResNetConfig
from resnotes.tables import Rows

class Net(nn.Module):
    "A forward written as a function of the module and its input"
    def __init__(self, forward, **members):
        super().__init__()
        self.function = forward
        for name, m in members.items(): setattr(self, name, m)
    def forward(self, *args, **kwargs): return self.function(self, *args, **kwargs)

def linear(n=8): return nn.Linear(n, n)
def conv(n_in=8, n_out=8, k=3, stride=1, **kwargs): return nn.Conv2d(n_in, n_out, k, stride, k//2, **kwargs)
def vectors(): return torch.randn(2, 8)
def images(): return torch.randn(2, 8, 16, 16)
def matrix(n=8): return nn.Parameter(torch.randn(n, n))

def found(forward, x, **members): return residual_branches(Net(forward, **members), x)
def kinds(branches): return [b.shortcut for b in branches]

# --- how an addition is written --------------------------------------------------------------------------------------

def in_place(s, x):
    x += s.a(x).relu()
    x.add_(s.b(x).relu())
    return x

@pytest.mark.parametrize('forward, count', [
    (lambda s, x: x + s.a(x), 1), (lambda s, x: s.a(x.relu()) + x, 1), (lambda s, x: x - s.a(x), 1), (lambda s, x: torch.add(x, s.a(x), alpha=.1), 1),
    (lambda s, x: torch.addcmul(x, s.g, s.a(x)), 1), (lambda s, x: torch.lerp(x, s.a(x), .5), 1), (in_place, 2),
    (lambda s, x: sum([x, s.a(x).relu(), s.b(x)]), 2), (lambda s, x: x + (s.a(x).relu() + s.b(x)), 2), (lambda s, x: s.a(x).relu() + s.b(x) + x, 2),
    (lambda s, x: .5*x + s.g*s.a(x.relu()), 1), (lambda s, x: F.dropout(x, .5) + s.a(x), 1), (lambda s, x: F.layer_norm(x, (8,)) + s.a(x), 1),
    (lambda s, x: x + x@s.w, 1), (lambda s, x: x + torch.einsum('bi,ij->bj', x, s.w), 1), (lambda s, x: {'y': [x + s.a(x)], 'n': 3}, 1),
    (lambda s, x: (lambda y: (y + s.b(y), x, y))(x + s.a(x)), 2)])
def test_writings(forward, count):
    assert len(found(forward, vectors(), a=linear(), b=linear(), g=nn.Parameter(torch.ones(8)), w=matrix())) == count

@pytest.mark.parametrize('forward', [
    lambda s, x: s.a(x) + s.g, lambda s, x: x + x, lambda s, x: x + x.relu(), lambda s, x: x + s.g*x.sigmoid(), lambda s, x: s.a(x)*s.b(x).sigmoid(),
    lambda s, x: torch.cat([x, s.a(x)], 1), lambda s, x: s.a(x).relu() + s.b(x).relu(), lambda s, x: s.a(x) + s.b(x), lambda s, x: s.a(x) + s.b(s.c(x)), lambda s, x: s.a(x) + x.detach(),
    lambda s, x: (lambda g: g*s.b(x) + (1-g)*x)(s.a(x).sigmoid()), lambda s, x: (x@x.T + s.a(x)@x.T).softmax(1)@s.b(x)])
def test_what_is_not_residual(forward):
    assert len(found(forward, vectors(), a=linear(), b=linear(), c=linear(), g=nn.Parameter(torch.ones(8)))) == 0

@pytest.mark.parametrize('forward, kind', [
    (lambda s, x: x + s.same(x).relu(), 'identity'), (lambda s, x: s.skip(x) + s.wide(x).relu(), 'projection'),
    (lambda s, x: s.wide(x).relu() + s.skip(x), 'projection'),
    (lambda s, x: s.one(F.avg_pool2d(x, 2)) + s.wide(x).relu(), 'projection'), (lambda s, x: F.max_pool2d(x, 2).repeat(1, 2, 1, 1) + s.wide(x), 'pooled'),
    (lambda s, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + s.wide(x), 'pooled'),
    (lambda s, x: (lambda h: torch.cat([h, 0*h], 1) + s.wide(x))(F.avg_pool2d(x, 2)), 'pooled'),
    (lambda s, x: (lambda h: torch.cat([h, torch.zeros_like(h)], 1) + s.wide(x))(F.avg_pool2d(x, 2)), 'pooled')])
def test_kinds_of_shortcut(forward, kind):
    r = found(forward, images(), same=conv(), wide=conv(8, 16, 3, 2), skip=conv(8, 16, 1, 2), one=conv(8, 16, 1))
    assert kinds(r) == [kind] and r[0].last in ('same', 'wide')
    assert {name.partition('.')[0] for name in r[0].shortcut_parameters} <= {'skip', 'one'} and bool(r[0].shortcut_parameters) == (kind == 'projection')

def partly(s, x):
    y = s.a(x)
    y[..., :4] += s.b(y.relu())[..., :4]
    y[..., 4:] = s.a(x)[..., 4:]
    return y.contiguous().relu()

def on_a_view(s, x):
    y = s.a(x).relu_().view(2, -1)
    y.add_(x.view(2, -1))
    return y

def from_the_left(s, x):
    y = s.a(x)   # three dimensions: the linear layer returns a view
    y += x
    return y

@pytest.mark.parametrize('forward, last', [(partly, 'b'), (on_a_view, 'a'), (from_the_left, 'a')])
def test_additions_in_place_on_views(forward, last):
    r, = found(forward, torch.randn(2, 5, 8), a=linear(), b=linear())
    assert r.last == last and 'test_branches.py' in r.where

# --- sums that are no residual additions of the network ---------------------------------------------------------------

def two(s, x): return s.b(s.a(x).relu())
def other(s, x): return s.d(s.c(x).relu())
def unit(x): return F.normalize(x, dim=-1)
def complex_matrix(*size): return nn.Parameter(torch.randn(*size, dtype=torch.cfloat))

def parts():
    return dict({n: linear() for n in 'abcd'}, g=nn.Parameter(torch.rand(8)), w=matrix(), head=nn.Linear(8, 4), last=nn.Linear(8, 4), mix=nn.Conv1d(8, 8, 1),
                modes=complex_matrix(8, 8, 5), filter=complex_matrix(8, 5), router=nn.Linear(8, 3), experts=nn.ModuleList(linear() for _ in range(3)), norm=nn.LayerNorm(8))

def masked_patches(s, x):
    "A masked autoencoder's loss on some of the tokens, on pixels as they are"
    mask = torch.tensor([1., 0.]*(x.shape[1]//2)).expand(len(x), -1)
    out = two(s, x)
    return (((out - x)**2).mean(-1)*mask).sum()/mask.sum(), out

def divergence(s, x):
    h = s.a(x).relu()
    mean, logarithm = s.b(h), s.c(h)
    return ((s.d(mean) - x)**2).mean() - .5*(1 + logarithm - mean.pow(2) - logarithm.exp()).sum(1).mean()

def undone(s, x, inner=lambda s, z: two(s, z)):
    "Normalised over time and back, as in reversible instance norm"
    mean, deviation = x.mean(1, keepdim=True), (x.var(1, keepdim=True) + 1e-5).sqrt()
    return inner(s, (x - mean)/deviation)*deviation + mean

def fourier(s, x): return (s.mix(x) + torch.fft.irfft(torch.einsum('bix,iox->box', torch.fft.rfft(x), s.modes), n=8)).relu()

def few_modes(s, x):
    spectrum = torch.fft.rfft(x)
    out = torch.zeros_like(spectrum)
    out[..., :3] = torch.einsum('bix,iox->box', spectrum[..., :3], s.modes[..., :3])
    return F.gelu(s.mix(x) + torch.fft.irfft(out, n=8))

def force(s, x):
    "The slope of an energy to which two ways lead: autograd adds up what comes back"
    h = s.a(x).tanh()
    energy = (s.b(h).tanh()*h).sum() + (s.c(x)**2).sum()
    return -torch.autograd.grad(energy, x, create_graph=True)[0]

def force_of_residual(s, x):
    z = s.a(x).tanh()
    energy = s.head(z + other(s, z).tanh()).tanh().sum()
    return energy, -torch.autograd.grad(energy, x, create_graph=True)[0]

@pytest.mark.parametrize('forward, count', [
    (lambda s, x: ((two(s, x) - x)**2).mean(), 0), (lambda s, x: (x - two(s, x)).norm(), 0), (lambda s, x: (x - two(s, x)).abs().mean((1, 2)), 0),
    (lambda s, x: {'loss': (two(s, x) - x).square().mean(), 'out': two(s, x)}, 0), (masked_patches, 0), (divergence, 0),
    (lambda s, x: (x + two(s, x) - x).square().mean(), 1),                                       # residual, and compared with its input
    (lambda s, x: F.mse_loss(x - two(s, x), torch.ones_like(x)), 1), (lambda s, x: (x - two(s, x) - 1.).square().mean(), 1), (lambda s, x: s.head((x - two(s, x)).mean(1)), 1)])
def test_what_a_loss_subtracts(forward, count): assert len(found(forward, torch.randn(2, 8, 8), **parts())) == count

@pytest.mark.parametrize('forward, count', [
    (undone, 0), (lambda s, x: (lambda last: two(s, x - last) + last)(x[:, -1:]), 0), (lambda s, x: undone(s, x, lambda s, z: z + two(s, z)), 1),
    (lambda s, x: x[:, :1].repeat(1, 8, 1) + two(s, x), 1), (lambda s, x: x + two(s, x).mean(1, keepdim=True), 1)])
def test_statistics_that_are_put_back(forward, count): assert len(found(forward, torch.randn(2, 8, 8), **parts())) == count

@pytest.mark.parametrize('forward', [
    fourier, few_modes, lambda s, x: F.gelu(s.a(x) + torch.fft.irfft(s.filter*torch.fft.rfft(x), n=8)), lambda s, x: (lambda h: s.head(h) + s.last(h))(two(s, x)),
    lambda s, x: (lambda h: (s.head(h[:, 0]) + s.last(h[:, 1]))/2)(two(s, x)), lambda s, x: (lambda h: s.head(h.mean(1)) + s.last(h.max(1).values))(two(s, x))])
def test_two_linear_maps(forward): assert len(found(forward, torch.randn(2, 8, 8), **parts())) == 0

@pytest.mark.parametrize('forward, count', [(force, 0), (force_of_residual, 1)])
def test_gradients_within_the_forward_pass(forward, count):
    r = found(forward, vectors(), **parts())
    assert len(r) == r.depth == count and all(b.last == 'd' for b in r)

@pytest.mark.parametrize('forward, count', [
    (lambda s, x: x + .3*(two(s, x) - x), 1), (lambda s, x: x - s.g*(x - two(s, x)), 1), (lambda s, x: unit(x + s.g*(unit(two(s, x)) - x)), 1),
    (lambda s, x: (lambda y: unit(y + s.g*(unit(other(s, y)) - y)))(unit(x + s.g*(unit(two(s, x)) - x))), 2), (lambda s, x: torch.lerp(x, two(s, x), s.g), 1),
    (lambda s, x: (lambda y: y.lerp(unit(two(s, y)), .2))(unit(x)), 1), (lambda s, x: x + (other(s, two(s, x) - x)), 2)])
def test_a_step_towards_something_is_one_branch(forward, count):
    r = found(forward, vectors(), **parts())
    assert len(r) == r.depth == count and r[0].last == 'b' and r[0].inside in (None, 1)

# --- sums in other words ------------------------------------------------------------------------------------------------

def in_rows(s, x):
    y = s.a(x).relu()
    y.index_add_(0, torch.tensor([1, 0]), other(s, y))
    return y

rows = torch.tensor([0, 1, 1])
@pytest.mark.parametrize('forward, last', [
    (lambda s, x: x.index_add(0, rows, two(s, x[rows])), 'b'), (lambda s, x: torch.index_add(x, dim=0, index=rows, source=two(s, x[rows]), alpha=.5), 'b'), (in_rows, 'd'),
    (lambda s, x: x.scatter_add(0, rows[:, None].expand(3, 8), two(s, x[rows])), 'b'), (lambda s, x: x[:1] + two(s, x[[1]]), 'b'),
    (lambda s, x: x[:1] + two(s, x.index_select(0, rows[1:2])), 'b'), (lambda s, x: x[:1] + two(s, x.gather(0, torch.ones(1, 8).long())), 'b'),
    (lambda s, x: x[:1] + torch.zeros(1, 8).index_add(0, torch.zeros(3).long(), two(s, x[rows])), 'b'),
    (lambda s, x: torch.addmm(x, s.a(x).relu(), s.w), ''), (lambda s, x: torch.addmm(x, x, s.w), ''), (lambda s, x: (1*x).addmm_(s.a(x).relu(), s.w, beta=.5), ''),
    (lambda s, x: torch.baddbmm(x[None], s.a(x).relu()[None], s.w[None], alpha=.5), ''), (lambda s, x: torch.stack([x, two(s, x)]).sum(0), 'b'),
    (lambda s, x: torch.sum(torch.stack([two(s, x), x], -1), dim=-1), 'b')])
def test_sums_within_other_operations(forward, last):
    model, x, sums = Net(forward, **parts()), vectors(), Sums()
    with followed(model): out, (b,), (join,), *_ = trace(model, [x], {}, sums)
    assert b.last == last and 'test_branches.py' in b.where and torch.allclose(out, model(x), atol=1e-6)
    if b.shortcut == 'identity': assert torch.allclose(sum(sums.pairs[join.main]), model(x), atol=1e-6)      # both summands can be measured

@pytest.mark.parametrize('forward', [lambda s, x: torch.addmm(s.g, x, s.w), lambda s, x: torch.addmm(s.norm(s.g), x, s.w), lambda s, x: torch.stack([two(s, x), x]).sum(1),
                                     lambda s, x: torch.stack([two(s, x), x], 1).flatten(1), lambda s, x: torch.zeros(2, 8).index_add(0, rows, two(s, x[rows]))])
def test_what_is_no_sum_in_other_words(forward): assert len(found(forward, vectors(), **parts())) == 0

@pytest.mark.parametrize('shortcut', [lambda x: x.max(1).values, lambda x: x.max(1)[0], lambda x: x.min(1)[0], lambda x: x.amax(1), lambda x: x.sum(1), lambda x: x.median(1)[0]])
def test_a_maximum_on_the_shortcut(shortcut):
    assert kinds(found(lambda s, x: shortcut(x) + two(s, x).mean(1), torch.randn(2, 5, 8), **parts())) == ['pooled']

@pytest.mark.parametrize('gate', [lambda s, x: s.g.tanh(), lambda s, x: s.g[0].tanh(), lambda s, x: s.c(x).tanh(), lambda s, x: s.c(x).sigmoid(), lambda s, x: s.g.sigmoid()])
def test_learned_gates_at_the_end(gate):
    "The gate's own layer is not the last one, and a parameter within a curve is no multiplier: it cannot be scaled"
    for forward in (lambda s, x: x + gate(s, x)*two(s, x), lambda s, x: x + two(s, x)*gate(s, x)):
        r, = found(forward, vectors(), **parts())
        assert r.last == 'b' and r.multiplier is None

# --- one convention -------------------------------------------------------------------------------------------------------

def routed(s, x):
    shares, out = s.router(x).softmax(-1), torch.zeros_like(x)
    for k, rows in enumerate(([0, 1], [1], [0])): out.index_add_(0, torch.tensor(rows), s.experts[k](x[rows])*shares[rows, k, None])
    return out

@pytest.mark.parametrize('forward, count', [
    (lambda s, x: x + (two(s, x) + other(s, x)), 2), (lambda s, x: x + (two(s, x) + other(s, x)).view(2, 8), 2), (lambda s, x: x + .5*(two(s, x) + other(s, x)), 2),
    (lambda s, x: x + F.dropout(two(s, x) + other(s, x), .1)/2, 2), (lambda s, x: (x + two(s, x)) + other(s, x), 2), (lambda s, x: x + (two(s, x) - other(s, x)), 2),
    (lambda s, x: x + torch.stack([two(s, x), other(s, x)]).mean(0), 2), (lambda s, x: torch.stack([x, two(s, x), other(s, x)]).sum(0), 2), (lambda s, x: x + routed(s, x), 1),
    (lambda s, x: x + (routed(s, x) + two(s, x)), 2), (lambda s, x: x + (two(s, x) + routed(s, x)).view(2, 8), 2),
    (lambda s, x: (lambda f: (x + .5*f, f.relu()))(2*(two(s, x) + other(s, x))), 1),   # something else reads the sum of the two
    (lambda s, x: x + s.norm(two(s, x) + other(s, x)), 1), (lambda s, x: x + s.g*(two(s, x) + other(s, x)), 1)])   # one size for both
def test_each_summand_with_its_own_weights_is_a_branch(forward, count):
    r = found(forward, vectors(), **parts())
    assert len(r) == r.depth == count and len({b.last for b in r}) == count

# --- networks --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('cell', [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_recurrent_cells_add_nothing_residual(cell):
    def forward(s, x):
        h = None
        for step in x: h = s.cell(step, h)
        return h
    assert len(found(forward, torch.randn(5, 2, 8), cell=cell(8, 8))) == 0

@pytest.mark.parametrize('layer', [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_weight_layers(layer):
    r = found(lambda s, x: x + s.layer(x)[0], torch.randn(5, 2, 8), layer=layer(8, 8))
    assert len(r) == 1 and r[0].last == 'layer'

@pytest.mark.parametrize('parts', [lambda h: torch.split(h, 2, 1), lambda h: [h[:, 2*i:2*i+2] for i in range(4)], lambda h: h.chunk(4, 1)])
def test_parts_of_a_channel_split_have_no_common_fork(parts):
    def forward(s, x):
        first, *rest = parts(s.before(x).relu())
        out = [first]
        for p, k in zip(rest, s.kernels): out.append(k(p if len(out) == 1 else p + out[-1]).relu())
        return x + s.after(torch.cat(out, 1))
    r = found(forward, images(), before=conv(k=1), after=conv(k=1), kernels=nn.ModuleList(conv(2, 2) for _ in range(3)))
    assert len(r) == 1 and r[0].last == 'after' and len(r[0].weights) == 5

def test_attention_gate():
    def forward(s, x):
        g = s.up(s.down(x).relu())
        return s.out(torch.cat([x*s.psi((s.wx(x) + s.wg(g)).relu()).sigmoid(), g], 1))
    assert not found(forward, images(), up=nn.ConvTranspose2d(8, 8, 2, 2), down=conv(stride=2), wx=conv(k=1), wg=conv(k=1), psi=conv(8, 1, 1), out=conv(16, 8))

def test_gate_of_fused_attention():
    "What only query or key reads decides where to look; what the value reads is data"
    def heads(x): return x.view(2, 4, 2, 4).transpose(1, 2)
    def forward(s, x, part):
        parts = {p: heads(x + s.a(x).relu() if p == part else x) for p in ('query', 'key', 'value')}
        return F.scaled_dot_product_attention(*parts.values()).flatten(1)@s.w
    for part, count in (('query', 0), ('key', 0), ('value', 1)):
        r = residual_branches(Net(lambda s, x: forward(s, x, part), a=linear(), w=matrix(32)), torch.randn(2, 4, 8))
        assert len(r) == count, part

def test_relative_bias_shared_by_all_layers():
    def attend(s, x, i, bias): return (s.q[i](x)@s.k[i](x).mT + bias).softmax(-1)@s.v[i](x)
    def forward(s, tokens, mask):
        x, bias = s.embed(tokens), s.bias(torch.arange(25).view(5, 5)).squeeze(-1) + mask
        for i in range(3): x = x + s.o[i](attend(s, x, i, bias))
        return x
    layers = {n: nn.ModuleList(linear() for _ in range(3)) for n in 'qkvo'}
    net = Net(forward, embed=nn.Embedding(9, 8), bias=nn.Embedding(25, 1), **layers)
    r = residual_branches(net, torch.randint(9, (2, 5)), torch.randint(2, (5, 5)))
    assert [b.last for b in r] == ['o.0', 'o.1', 'o.2'] and all(len(b.weights) == 4 for b in r)

@pytest.mark.parametrize('forward', [lambda s, t: s.head(s.step(s.embed(t))), lambda s, t: s.head(s.step(F.one_hot(t, 9).float()@s.embed.weight)),
                                     lambda s, t: s.step(s.embed(t) + s.places(torch.arange(5)))@s.embed.weight.T, lambda s, t: s.step(s.embed.weight[t])])
def test_tokens(forward):
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = linear()
        def forward(self, x): return x + self.a(x.relu())
    r = residual_branches(Net(forward, embed=nn.Embedding(9, 8), places=nn.Embedding(5, 8), step=Step(), head=nn.Linear(8, 9)), torch.randint(9, (2, 5)))
    assert len(r) == 1 and r[0].module == 'step' and r[0].last_weight == 'step.a.weight' and 'test_branches.py' in r[0].where

def test_nested_branches_keep_what_is_their_own():
    def forward(s, x):
        y = s.down(x).relu()
        y = y + s.a(y).relu()
        return x + s.up(y)
    inner, outer = found(forward, images(), down=conv(8, 8, 3, 2), a=conv(), up=nn.ConvTranspose2d(8, 8, 2, 2))
    assert (inner.inside, outer.inside) == (1, None)
    assert outer.weights == ('down.weight', 'up.weight') and outer.last == 'up' and inner.parameters == ('a.weight', 'a.bias')
    assert outer.span[0] < inner.span[0] < inner.span[1] < outer.span[1]

def test_a_branch_without_a_layer_of_its_own():
    def block(s, x): return x + .2*s.a(x).relu()
    r = found(lambda s, x: x + .2*block(s, block(s, x)), images(), a=conv())
    assert [b.inside for b in r] == [2, 2, None] and r[2].last is None and r[2].weights == () and r.depth == 3

def test_a_branch_that_ends_in_another_addition():
    inner, outer = found(lambda s, x: x + (lambda y: y + s.a(y).relu())(s.b(x).relu()).mul(.2), images(), a=conv(), b=conv())
    assert (inner.last, inner.inside) == ('a', 1) and outer.last is None and outer.weights == ('b.weight',)

def test_encoder_with_residual_blocks_and_concatenating_skips():
    def forward(s, x):
        x = x + s.a(x).relu()
        y = (s.skip(x) + s.b(x).relu()).relu()
        y = y + s.c(y).relu()
        return s.out(torch.cat([x, F.interpolate(y, scale_factor=2)], 1))
    r = found(forward, images(), a=conv(), b=conv(8, 16, 3, 2), skip=conv(8, 16, 1, 2), c=conv(16, 16), out=conv(24, 1))
    assert kinds(r) == ['identity', 'projection', 'identity'] and not any(b.inside for b in r)

trees = st.recursive(st.sampled_from(['linear', 'relu', 'norm']), lambda t: st.tuples(st.sampled_from(['series', 'residual']), st.lists(t, min_size=1, max_size=4)), max_leaves=14)

class Sum(nn.Sequential):
    def forward(self, x): return x + super().forward(x)

def grown(tree):
    "A network from a tree, whether it holds a weight layer, and its residual branches with one"
    if isinstance(tree, str): return {'linear': linear, 'relu': nn.ReLU, 'norm': lambda: nn.LayerNorm(8)}[tree](), tree == 'linear', 0
    parts = [grown(t) for t in tree[1]]
    weighs = any(w for _, w, _ in parts)
    return (Sum if tree[0] == 'residual' else nn.Sequential)(*[m for m, _, _ in parts]), weighs, sum(n for _, _, n in parts) + (weighs and tree[0] == 'residual')

@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_nesting(tree):
    net, _, count = grown(tree)
    r = residual_branches(nn.Sequential(linear(), net), vectors())
    weights = [w for b in r for w in b.weights]
    assert len(r) == r.depth == count and len(set(weights)) == len(weights)
    for b in r: assert b.inside is None or r[b.inside].span[0] <= b.span[0] < b.span[1] < r[b.inside].span[1]

def test_parallel_branches_of_unequal_length():
    def forward(s, x): return (x + s.c(s.b(s.a(x).relu()).relu())) + s.d(x)
    long, short = found(forward, vectors(), **{n: linear() for n in 'abcd'})
    assert (long.modules, short.modules) == (('a', 'b', 'c'), ('d',)) and not long.shortcut_parameters and not short.shortcut_parameters

def test_reparametrised_layers_are_parallel():
    r = found(lambda s, x: (s.a(x) + s.b(x) + s.norm(x)).relu(), images(), a=conv(), b=conv(k=1), norm=nn.BatchNorm2d(8))
    assert [(b.last, b.inside) for b in r] == [('a', None), ('b', None)] and all(b.shortcut_parameters == ('norm.weight', 'norm.bias') for b in r)

def test_low_rank_correction_within_a_branch():
    r, = found(lambda s, x: x + s.c((s.a(x) + s.up(s.down(x))).relu()), vectors(), a=linear(), c=linear(), up=nn.Linear(2, 8), down=nn.Linear(8, 2))
    assert r.last == 'c' and len(r.weights) == 4

def test_low_rank_correction_of_the_last_layer():
    r, = found(lambda s, x: x + (lambda h: s.a(h) + s.up(s.down(h)))(s.c(x).relu()), vectors(), a=linear(), c=linear(), up=nn.Linear(2, 8), down=nn.Linear(8, 2))
    assert r.last == 'a' and len(r.weights) == 4

def test_gate_at_the_end_is_not_the_last_layer():
    def forward(s, x):
        f = s.b(s.a(x).relu())
        return x + f*s.up(s.down(f.mean((2, 3), keepdim=True)).relu()).sigmoid()
    r, = found(forward, images(), a=conv(), b=conv(), down=conv(8, 2, 1), up=conv(2, 8, 1))
    assert r.last == 'b' and len(r.weights) == 4

def test_memory_enters_from_the_side():
    r = residual_branches(nn.TransformerDecoderLayer(8, 2, 16), torch.randn(3, 2, 8), torch.randn(4, 2, 8))
    assert [b.last for b in r] == ['self_attn.out_proj', 'multihead_attn.out_proj', 'linear2']
    assert r[1].weights == ('multihead_attn.in_proj_weight', 'multihead_attn.out_proj.weight')

@pytest.mark.parametrize('forward', [
    lambda s, x: x + s.g*s.a(x).tanh(), lambda s, x: x + s.a(x)*s.g, lambda s, x: x + s.a(x.T.T).mul_(s.g[None]), lambda s, x: torch.addcmul(x, s.g, s.a(x)),
    lambda s, x: x + .5*(s.g.view(1, 8)*s.a(x)).view(2, 8)])
def test_a_learned_multiplier_at_the_end(forward):
    r, = found(forward, vectors(), a=linear(), g=nn.Parameter(torch.rand(8)))
    assert (r.last, r.multiplier) == ('a', 'g') and set(r.parameters) == {'a.weight', 'a.bias', 'g'}

@pytest.mark.parametrize('forward', [
    lambda s, x: x + (s.g*s.a(x)).relu(), lambda s, x: x + s.norm(s.g*s.a(x)), lambda s, x: x + s.g.tanh()*s.a(x), lambda s, x: x + s.a(s.g*x), lambda s, x: x + s.a(x)*(s.g*x)])
def test_what_is_no_multiplier_at_the_end(forward):
    r, = found(forward, vectors(), a=linear(), g=nn.Parameter(torch.rand(8)), norm=nn.LayerNorm(8))
    assert r.last == 'a' and r.multiplier is None

@pytest.mark.parametrize('mix', [
    lambda s, z: sum(p*e(z) for p, e in zip(s.router(z).softmax(1).split(1, 1), s.experts)),
    lambda s, z: torch.cat([e(z)[:, i:i+3] for i, e in zip((0, 3, 5), s.experts)], 1)[:, :8],
    lambda s, z: torch.zeros_like(z).index_add(0, torch.tensor([0, 1, 1]), torch.stack([e(v) for e, v in zip(s.experts, z[[0, 1, 1]])]))])
def test_every_expert_ends_a_branch(mix):
    r, = found(lambda s, x: x + mix(s, s.a(x).relu()), vectors(), a=linear(), router=nn.Linear(8, 3), experts=nn.ModuleList(linear() for _ in range(3)))
    assert set(r.last_weights) == {f'experts.{i}.weight' for i in range(3)} and r.last_weight in r.last_weights

def test_a_gate_from_the_side_is_not_the_last_layer():
    def forward(s, x, c):
        shift, gate = s.modulate(c).chunk(2, 1)
        return x + gate*s.b(s.a(x + shift).relu())
    r, = residual_branches(Net(forward, a=linear(), b=linear(), modulate=nn.Linear(8, 16)), vectors(), vectors())
    assert r.last == 'b' and r.weights == ('modulate.weight', 'a.weight', 'b.weight')

@pytest.mark.parametrize('count, start', [(6, lambda x: (x, x)), (5, lambda x: x.chunk(2, 1))])
def test_reversible_couplings(count, start):
    def forward(s, x):
        a, b = start(x)
        for f, g in zip(s.f, s.g): a, b = (a := a + f(b)), b + g(a)
        return torch.cat([a, b], 1)
    assert len(found(forward, torch.randn(2, 8 if count == 6 else 16), **{n: nn.ModuleList(nn.Sequential(linear(), nn.ReLU(), linear()) for _ in range(3)) for n in 'fg'})) == count

@dataclass
class Record:
    x:torch.Tensor
    others:dict

def test_dataclasses_go_in_and_come_out():
    net, r = Net(lambda s, r: Record(r.x + s.a(r.x).relu()*r.others['y'][0], {}), a=linear()), Record(vectors(), {'y': [vectors()]})
    given = r.x.clone()
    assert len(residual_branches(net, r)) == len(residual_branches(net, r=r)) == 1 and torch.equal(r.x, given) and not r.x.requires_grad

def test_depth_counts_one_of_two_towers():
    def tower(s, x, layers):
        for l in layers: x = x + l(x).relu()
        return x
    net = Net(lambda s, x, y: tower(s, x, s.a)@tower(s, y, s.b).T, a=nn.ModuleList(linear() for _ in range(3)), b=nn.ModuleList(linear() for _ in range(5)))
    r = residual_branches(net, vectors(), vectors())
    assert len(r) == 8 and r.depth == 5

@pytest.mark.parametrize('wrap', [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal])
def test_parametrised_weights(wrap):
    r, = found(lambda s, x: x + s.a(x).relu(), vectors(), a=wrap(linear()))
    assert r.last == 'a' and r.last_weight.startswith('a.parametrizations.weight')

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w): return x@w
    @staticmethod
    def backward(ctx, d): return d, None

def test_own_functions_and_shared_weights():
    r = found(lambda s, x: (lambda step: step(step(x)))(lambda y: y + Doubled.apply(y, s.w)), vectors(), w=matrix())
    assert [b.last_weight for b in r] == ['w', 'w'] and r[0].last == ''

def test_thousand_layers(): assert residual_branches(build('resnet1202'), torch.randn(1, 3, 8, 8)).depth == 600

# --- units -----------------------------------------------------------------------------------------------------------

def units(model, *example): return [b.module for b in residual_branches(model, *example)]

@pytest.mark.parametrize('name, changes', [('resnet18', {}), ('preact164', dict(blocks=(2, 2, 2))), ('wrn_10_1', {}), ('resnext29_8x64d', dict(base_width=4, blocks=(1, 1, 1)))])
def test_units_of_the_book(name, changes):
    model = build(name, **changes)
    expected = [f'stages.{i}.{j}' for i, stage in enumerate(model.stages) for j in range(len(stage))]
    assert units(model, torch.randn(1, 3, 32, 32)) == expected

@pytest.mark.parametrize('name', ['tower', 'taki_tower'])
def test_units_of_a_tower(name):
    model = build(name, depth=3)
    names = {id(m): n for n, m in model.named_modules()}
    assert units(model, torch.randn(1, 1, 8, 8)) == [names[id(m)] for m in model.units]

def test_units_of_a_unet():
    "A long skip is added by the model itself"
    found = units(build('strict_unet48', skip='add', width=2), torch.randn(1, 1, 16, 16))
    assert found.count('') == 3 and all(n.startswith('stages.') and n.count('.') == 2 for n in found if n)

def test_units_of_foreign_models():
    class Out(nn.Module):
        "The addition stands beside the last layer, as in BERT"
        def __init__(self):
            super().__init__()
            self.dense, self.norm = linear(), nn.LayerNorm(8)
        def forward(self, x, y): return self.norm(self.dense(x) + y)
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.output = linear(), Out()
        def forward(self, x): return self.output(self.inner(x).relu(), x)
    assert units(nn.Sequential(Attend(), Attend()), vectors()) == ['0', '1']
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    assert units(encoder, torch.randn(2, 3, 8)) == ['layers.0']*2 + ['layers.1']*2
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)
    assert units(decoder, torch.randn(2, 3, 8), torch.randn(2, 4, 8)) == ['layers.0']*3

def test_a_unit_holds_the_branch_and_the_addition():
    block = nn.ModuleDict(dict(a=linear()))
    assert units(Net(lambda s, x: x + s.block['a'](x).relu(), block=block), vectors()) == ['']   # holds no addition
    inner = Net(lambda s, x, y: x + y)
    assert units(nn.Sequential(Net(lambda s, x: s.add(x, s.a(x).relu()), a=linear(), add=inner)), vectors()) == ['0']
    shared = Net(lambda s, x: x + s.a(x).relu(), a=linear())
    assert units(nn.Sequential(shared, shared), vectors()) == ['0', '0']                          # by its first name
    tied = Net(lambda s, x: x + s.a(x).relu(), a=linear())
    tied.a.weight = shared.a.weight
    assert units(nn.Sequential(shared, tied), vectors()) == ['0', '1']                            # and so are its weights

# --- where branches meet the main path -------------------------------------------------------------------------------

class Sums:
    "Both summands by site"
    def __init__(self): self.pairs = {}
    def before_sum(self, site, x, y): self.pairs[site] = x.clone(), y.clone()   # one may be overwritten

@pytest.mark.parametrize('forward', [
    lambda s, x: x + s.a(x).relu(), lambda s, x: s.a(x).relu() + x, lambda s, x: (1 + x - 1) + s.a(x + s.g - s.g).relu(),
    lambda s, x: torch.addcmul(x, s.g, s.a(x).relu()), lambda s, x: (lambda y: y.add_(x))(s.a(x).relu())])
def test_joins_name_the_summand(forward):
    model, x, sums = Net(forward, a=linear(), g=nn.Parameter(torch.ones(8))), vectors(), Sums()
    with followed(model): _, branches, (join,), *_ = trace(model, [x], {}, sums)
    pair = sums.pairs[join.site]
    assert join.site == join.main and join.shortcut == 1 - join.operand
    assert torch.allclose(pair[join.operand], model.a(x).relu(), atol=1e-6) and torch.allclose(pair[join.shortcut], x, atol=1e-6)

def added(x, y):
    "A sum within another call, as torch's own functions in Python make it"
    if has_torch_function((x, y)): return handle_torch_function(added, (x, y), x, y)
    return x + y

def test_a_sum_within_another_call_has_no_number():
    with followed(model := Net(lambda s, x: added(x + s.a(x), s.b(x).relu()), a=linear(), b=linear())): joins = trace(model, [vectors()], {}).joins
    assert [j.main.number for j in joins] == [1, 0] and all(j.main.modules == ('',) for j in joins)

def test_joins_of_parallel_branches():
    model, x, sums = Net(lambda s, x: x + (s.a(x).relu() + s.b(x).tanh()), a=linear(), b=linear()), vectors(), Sums()
    with followed(model): _, branches, joins, *_ = trace(model, [x], {}, sums)
    assert [j.operand for j in joins] == [0, 1] and joins[0].site == joins[1].site != joins[0].main == joins[1].main
    for j, f in zip(joins, (model.a(x).relu(), model.b(x).tanh())): assert torch.allclose(sums.pairs[j.site][j.operand], f, atol=1e-6)

def test_joins_know_of_norms_on_the_main_path():
    def forward(s, x):
        for i in range(3): x = (s.norms[i](x) if i != 1 else x) + s.layers[i](x).relu()
        return x
    model = Net(forward, norms=nn.ModuleList(nn.LayerNorm(8) for _ in range(3)), layers=nn.ModuleList(linear() for _ in range(3)))
    with followed(model): assert [j.norm for j in trace(model, [vectors()], {}).joins] == [False, False, True]   # the first has no addition before it

def test_joins_know_of_weight_layers_on_the_main_path():
    def forward(s, x):
        for i in range(4): x = (s.between[i](x) if i != 1 else x) + s.layers[i](x).relu()
        return x
    between = [linear(), None, linear(), nn.LayerNorm(8)]     # the first has no addition before it, the last multiplies by no matrix
    model = Net(forward, between=nn.ModuleList(between), layers=nn.ModuleList(linear() for _ in range(4)))
    with followed(model): assert [j.layer for j in trace(model, [vectors()], {}).joins] == [False, False, True, False]

def test_features_stand_where_the_last_layer_puts_them():
    def which(layer, shape):
        model = Net(lambda s, x: x + s.layer(x).relu(), layer=layer)
        branch = residual_branches(model, vectors() if isinstance(layer, nn.Linear) else images())[0]
        return which_features(model, branch.last, shape)
    assert which(conv(), (2, 8, 16, 16)) == which(conv(), (2, 8, 8, 8)) == 1
    assert which(linear(), (2, 5, 8)) == which(linear(), (2, 8, 8, 8)) == 2
    assert which(linear(), (2, 8, 16, 16)) == 1 and which(linear(), ()) == 2     # linear layers between transpositions

# --- nothing stays in memory -----------------------------------------------------------------------------------------

def alive(): return sum(issubclass(type(o), (nn.Module, torch.Tensor)) for o in gc.get_objects())

def test_searched_models_leave_memory_without_the_collector():
    "Not even in the function that searched: nothing looks at its variables"
    def search():
        model = small()
        gone = weakref.ref(model), weakref.ref(next(model.parameters()))
        residual_branches(model, torch.randn(1, 3, 8, 8))
        with pytest.raises(ValueError, match='x must have shape'): residual_branches(model, torch.randn(1, 2, 8, 8))
        del model
        return [g() is None for g in gone]
    search()
    gc.collect()
    gc.disable()
    try:
        before = alive()
        assert search() == [True, True] and alive() <= before
    finally: gc.enable()

# --- surroundings ----------------------------------------------------------------------------------------------------

def state(model):
    return ([m.training for m in model.modules()], [(p.requires_grad, p.grad if p.grad is None else p.grad.clone(), p.detach().clone()) for p in model.parameters()],
            {n: b.clone() for n, b in model.named_buffers()}, torch.get_rng_state(), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()])

def same(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b

def small(**kwargs): return build(ResNetConfig((2, 2), 8, stem_width=8, dropout=.1, drop_path_rate=.5), **kwargs)

@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('frozen', ['none', 'some', 'all'])
def test_all_is_left_as_it_was(training, frozen):
    model, x = small().train(training), torch.randn(2, 3, 8, 8)
    model.stem.eval()
    model(x).sum().backward()
    for i, p in enumerate(model.parameters()): p.requires_grad_(frozen == 'none' or frozen == 'some' and i%2 == 0)
    before, given = state(model), x.clone()
    assert len(residual_branches(model, x)) == 4
    assert same(before, state(model)) and torch.equal(x, given) and not x.requires_grad and torch.is_grad_enabled()

def test_all_is_left_as_it_was_after_an_error():
    def forward(s, x):
        x = s.norm(s.a(F.dropout(x)))
        x.add_(1)
        raise RuntimeError('broken here')
    net, x = Net(forward, a=linear(), norm=nn.BatchNorm1d(8)).requires_grad_(False), vectors()
    before = state(net)
    with pytest.raises(RuntimeError, match='broken here'): residual_branches(net, x)
    assert same(before, state(net))
    assert len(residual_branches(nn.Sequential(linear()), x)) == 0

def test_a_model_that_changes_its_input():
    x = vectors()
    given = x.clone()
    residual_branches(Net(in_place, a=linear(), b=linear()), x)
    assert torch.equal(x, given)

@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode, lambda: torch.autocast('cpu', torch.bfloat16)])
def test_contexts(context):
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 3, 8)
    with context():
        assert len(residual_branches(model, x)) == 2
        assert model(x).shape == x.shape

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_number_formats(dtype): assert len(residual_branches(small().to(dtype), torch.randn(1, 3, 8, 8, dtype=dtype))) == 4

def test_layouts():
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert len(residual_branches(small().to(memory_format=torch.channels_last), x)) == 4
    assert len(residual_branches(small(), torch.randn(2, 3, 16, 16)[..., ::2, ::2])) == 4

def test_fastai_tensors():
    from fastai.torch_core import TensorImage
    assert len(residual_branches(small(), TensorImage(torch.randn(2, 3, 8, 8)))) == 4

def test_shapes_without_numbers():
    with torch.device('meta'): model, x = nn.TransformerEncoder(nn.TransformerEncoderLayer(4096, 32, 16384, batch_first=True), 4), torch.randn(1, 9, 4096)
    assert len(residual_branches(model, x)) == 8

def test_checkpoints():
    assert len(residual_branches(small(segments=2), torch.randn(2, 3, 8, 8))) == 4
    r, = found(lambda s, x: checkpoint(lambda y: y + s.a(y).relu(), x, use_reentrant=False), vectors(), a=linear())
    assert r.last == 'a'

def test_compiled_model_is_followed_eagerly():
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8)
    compiled = torch.compile(layer, backend='aot_eager')
    compiled(x)
    assert len(residual_branches(compiled, x)) == 2
    assert len(residual_branches(nn.Sequential(compiled, nn.Linear(8, 8)), x)) == 2

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_scripted_model(): assert len(residual_branches(torch.jit.script(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), torch.randn(2, 3, 8))) == 2

def test_copies_agree():
    model, x = small(), torch.randn(2, 3, 8, 8)
    first, second = residual_branches(model, x), residual_branches(copy.deepcopy(model), x)
    assert first == second and [b.span for b in first] == [b.span for b in second]

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda():
    model, x = small().cuda(), torch.randn(2, 3, 8, 8, device='cuda')
    before = torch.cuda.get_rng_state()
    assert len(residual_branches(model, x)) == 4 and torch.equal(before, torch.cuda.get_rng_state())

# --- refusals --------------------------------------------------------------------------------------------------------

def without_gradients(s, x):
    with torch.no_grad(): x = s.a(x)
    return s.b(x)

@pytest.mark.parametrize('forward, error, text', [
    (without_gradients, ValueError, rf'grad mode is off at {__file__}:\d+, in module \'\''), (lambda s, x: s.a(x).detach(), ValueError, 'does not depend on the input'),
    (lambda s, x: s.a(x).argmax(1), ValueError, 'does not depend on the input'), (lambda s, x: s.a(x.detach()), ValueError, 'does not depend on the input'),
    (lambda s, x: 'text', TypeError, 'model must return a tensor, or lists or dicts of tensors, got str'), (lambda s, x: None, TypeError, 'NoneType'),
    (lambda s, x: s.b(checkpoint(s.a, x, use_reentrant=True)), ValueError, 'reentrant checkpoint')])
def test_models_that_cannot_be_followed(forward, error, text):
    net, x = Net(forward, a=linear(), b=linear()), vectors()
    before = state(net)
    with pytest.raises(error, match=text): residual_branches(net, x)
    assert same(before, state(net))

@pytest.mark.parametrize('model, example, error, text', [
    (linear, (), TypeError, 'model must be an nn.Module, got function'), (nn.ReLU(), (vectors(),), ValueError, 'model must have parameters, got ReLU'),
    (linear(), (), ValueError, 'example must hold a tensor'), (linear(), (3, 'x', None), ValueError, 'example must hold a tensor'),
    (linear(), (vectors()*float('nan'),), ValueError, 'example must be free of NaN, got 16'), (linear(), (torch.empty(0, 8),), ValueError, 'not be empty'),
    (linear(), (vectors().to('meta'),), ValueError, 'device of the model, cpu, got a tensor on meta'),
    (nn.LazyLinear(3), (vectors(),), ValueError, 'weights without a shape')])
def test_bad_arguments(model, example, error, text):
    with pytest.raises(error, match=text): residual_branches(model, *example)

def test_weights_made_in_inference_mode():
    with torch.inference_mode(): model = linear()
    with pytest.raises(ValueError, match='inference mode'): residual_branches(model, vectors())

def test_minus_infinity_in_a_mask_is_allowed():
    r = residual_branches(nn.TransformerEncoderLayer(8, 2, 16), torch.randn(3, 2, 8), src_mask=nn.Transformer.generate_square_subsequent_mask(3))
    assert len(r) == 2

# --- the report ------------------------------------------------------------------------------------------------------

def test_report():
    r = residual_branches(build('strict_unet48', skip='add', width=2), torch.randn(1, 1, 16, 16))
    text, page = repr(r), r._repr_html_()
    assert text.startswith('17 residual branches, depth L = 17\n') and len(text.splitlines()) == 19 and page.count('<tr>') == 18
    none = residual_branches(nn.Sequential(linear()), vectors())
    assert repr(none) == '0 residual branches, depth L = 0' and '<table>' not in none._repr_html_()

    assert isinstance(r, Rows) and list(r.to_frame().columns) == list(Branch._fields) and len(r.to_frame()) == 17

def test_what_enters_from_the_side_is_taken_back_to_its_weight_layer_and_no_further():
    r = residual_branches(Net(lambda s, x, m: x + s.a(x).tanh()*s.b(s.c(m).tanh()), **parts()), vectors(), vectors())
    assert [set(b.weights) for b in r] == [{'a.weight', 'b.weight'}]

def test_tokens_that_are_written_into_a_tensor_are_data():
    def forward(s, t):
        x = torch.zeros(len(t), 8)
        x[:, :t.shape[1]] = t/9
        x = s.d(x)
        return s.head(x + two(s, x))
    assert [b.last for b in found(forward, torch.randint(0, 9, (4, 5)), **parts())] == ['b']

def test_what_enters_from_the_side_without_a_weight_layer_is_no_part_of_the_branch():
    r = residual_branches(Net(lambda s, x, m: x + s.b(s.a(x).tanh()*(m*s.g).tanh()), **parts()), vectors(), vectors())
    assert [set(b.parameters) for b in r] == [{'a.weight', 'a.bias', 'b.weight', 'b.bias'}]

def test_the_table_names_the_unit_or_the_model_itself():
    own = Net(lambda s, x: x + s.a(x).relu(), a=linear())
    header, rows = residual_branches(Net(lambda s, x: s.unit(x) + s.b(s.b(x).relu()), unit=own, b=linear()), vectors()).table()
    assert header == ('branch', 'unit', 'shortcut', 'weight layers', 'last weight layer', 'inside')
    assert rows == [(0, 'unit', 'identity', 1, 'unit.a', None), (1, 'Net', 'identity', 1, 'b', None)]
    assert residual_branches(own, vectors()).table()[1] == [(0, 'Net', 'identity', 1, 'a', None)]
