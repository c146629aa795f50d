"What the evidence says of layers, norms, attention and noise, against the same worked out by hand"
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnotes.evidence import _sample, gather, measure_noise
from resnotes.listener import followed
from nets import normed, strict

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

class Mlp(nn.Module):
    "Three layers, a ReLU, a sigmoid; what each layer gives is kept"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)
        with torch.no_grad(): self.a.bias[:2], self.b.bias[:1] = -99., 9.
    def forward(self, x):
        self.given = [a := self.a(x), b := self.b(a.relu()), c := self.c(b.sigmoid())]
        return c

def test_layers_by_hand():
    model, x, y = Mlp(), 2*torch.randn(40, 6), torch.arange(40)%3
    ev = gather(model, x, y, loss=F.cross_entropy)
    loss = F.cross_entropy(model.double()(x.double()), y)
    given, of_weights = model.given, dict(model.named_parameters())
    by_layer = torch.autograd.grad(loss, given, retain_graph=True)
    by_weight = dict(zip(of_weights, torch.autograd.grad(loss, list(of_weights.values()))))
    for k, (row, name, out, gradient) in enumerate(zip(ev.layers, 'abc', given, by_layer, strict=True)):
        assert (row.index, row.module, row.kind) == (k, name, 'linear') and math.isnan(row.peak)
        assert row.main == pytest.approx(out.square().mean().item(), rel=1e-5)
        assert row.spread == pytest.approx((out.var(0, correction=0).mean()/out.square().mean()).item(), rel=1e-4)
        assert row.gradient == pytest.approx(gradient.square().sum(1).mean().item(), rel=1e-4)
    assert ev.layers[0].dead == 2/8 and ev.layers[1].saturated >= .2 and ev.layers[1].saturated == pytest.approx((given[1].sigmoid() - .5).abs().mul(2).gt(.95**.5).double().mean().item())
    assert [math.isnan(v) for r in ev.layers for v in (r.dead, r.saturated)] == [False, True, True, False, True, True]
    assert torch.equal(ev.first, x) and torch.allclose(ev.last.double(), given[1].sigmoid()) and ev.used == set(of_weights) and ev.error == () and not ev.normed
    assert ev.value == pytest.approx(loss.item(), rel=1e-5) and torch.allclose(ev.out.double(), given[2]) and ev.stuck == [] and ev.depth == 0
    for name, p in of_weights.items():
        assert ev.weights[name] == pytest.approx(p.norm().item(), rel=1e-5) and ev.gradients[name] == pytest.approx(by_weight[name].norm().item(), rel=1e-4)
    call, = ev.losses
    assert (call.kind, call.made_by, call.weighted) == ('cross_entropy', 'Addmm', False) and torch.equal(call.target, y)

def test_a_gelu_is_closed_where_all_it_gives_is_near_nothing():
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))
    with torch.no_grad(): model[0].weight.zero_(), model[0].bias.copy_(torch.tensor([-9., -9, -9, .1, .5, 1, 2, 3]))
    assert gather(model, torch.randn(20, 6)).layers[0].dead == 3/8

def test_a_layer_reads_its_data_wherever_it_stands_among_the_arguments():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b, self.head = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5)), nn.Linear(5, 2)
        def forward(self, x): return self.head(torch.addmm(self.b, x, self.w))
    x = torch.randn(9, 4)
    ev = gather(Bare(), x)
    assert torch.equal(ev.first, x) and [(r.module, r.kind) for r in ev.layers] == [('w', 'addmm'), ('head', 'linear')]

def test_without_a_loss_outputs_are_summed_with_random_signs():
    model, x = nn.Linear(4, 50), torch.randn(3, 4)
    ev = gather(model, x)
    assert ev.layers[0].gradient == pytest.approx(50) and abs(ev.value - model(x).sum().item()) > 1
    assert gather(model, x).value == ev.value

@pytest.mark.parametrize('norm, kind, values', [(nn.BatchNorm2d(4), 'batch_norm', 3*36), (nn.GroupNorm(2, 4), 'group_norm', 2*36), (nn.LayerNorm([4, 6, 6]), 'layer_norm', 144),
                                                (nn.BatchNorm2d(4, affine=False), 'batch_norm', 3*36), (nn.LayerNorm(6), 'layer_norm', 6)])
def test_a_norm_knows_over_how_many_values_it_averages(norm, kind, values):
    ev = gather(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, 2)), torch.randn(3, 1, 8, 8))
    assert ev.norms == [('1', kind, values, False, None)] and ev.normed and [r.module for r in ev.layers] == ['0', '3']

@pytest.mark.parametrize('kept', [True, False])
def test_running_statistics_are_compared_with_the_batch(kept):
    norm, x = nn.BatchNorm1d(4, track_running_stats=kept), torch.randn(30, 4)
    with torch.no_grad():
        if kept: norm.running_var.copy_(torch.tensor([1., 4, 9, 16])), norm.running_mean.copy_(torch.tensor([0., 1, 2, 3]))
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2)).eval()
    call, = gather(model, x).norms
    assert call.running == kept and (call.gap is None) != kept
    if kept:
        gap = (model[0](x).square().mean(0)/(norm.running_var + norm.running_mean.square() + norm.eps)).log().abs().median()
        assert call.gap == pytest.approx(gap.item(), rel=1e-5)

class Attention(nn.Module):
    "Two heads; by torch's function, or by hand"
    def __init__(self, fused): super().__init__(); self.qkv, self.fused = nn.Linear(8, 24), fused
    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        self.weights = (3*q@k.mT).softmax(-1)
        return F.scaled_dot_product_attention(6*q, k, v) if self.fused else self.weights@v

@pytest.mark.parametrize('n, heard', [(7, False), (8, True), (12, True)])
def test_attention_tells_what_its_rows_give_to_their_largest_key(n, heard):
    "From eight keys on; the fused one, which shows no rows, by the first example"
    x, model = torch.randn(3, n, 8), Attention(False)
    ev = gather(model, x)
    assert ev.attention == ([('', pytest.approx(model.weights.amax(-1).mean().item(), rel=1e-5))] if heard else [])
    class Fused(Attention):
        def forward(self, x):
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            self.rows = (3*q[:1]@k[:1].mT).exp()
            return F.scaled_dot_product_attention(6*q, k, v)
    model = Fused(True)
    ev = gather(model, x)
    rows = model.rows/model.rows.sum(-1, keepdim=True)
    assert ev.attention == ([('', pytest.approx(rows.amax(-1).mean().item(), rel=1e-5))] if heard else [])

def test_a_softmax_over_classes_is_no_attention():
    assert gather(nn.Sequential(nn.Linear(4, 10), nn.Softmax(-1)), torch.randn(6, 4)).attention == []

@pytest.mark.parametrize('scale', [.01, 1, 100])
def test_noise_passes_what_changes_nothing_as_it_came(scale):
    "In the unit of the input's own spread, and of no input that hardly varies"
    model = nn.Sequential(nn.Linear(400, 400, bias=False), nn.Linear(400, 2))
    nn.init.eye_(model[0].weight)
    def noise(x):
        with followed(model): return measure_noise(model, (x,), {})
    spread = torch.randn(30, 400)
    assert noise(scale*spread) == pytest.approx(1, rel=.05) and noise(scale*(5 + spread)) == pytest.approx(1, rel=.05)
    assert math.isnan(noise(scale*(1 + 1e-4*spread))) and math.isnan(noise(scale*spread[:1]))

def test_noise_is_tried_only_where_gradients_differ_a_hundredfold():
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16)%10
    for factor in (1e-3, 1e3):
        ev = gather(normed(12), x, y, loss=lambda out, y: factor*F.cross_entropy(out, y))
        assert ev.norms_on_top and ev.rows[0].gradient < 100*ev.rows[-1].gradient and math.isnan(ev.noise)
    assert gather(normed(12), x, noise=True).noise > 0

@pytest.mark.parametrize('training', [True, False])
def test_branches_that_add_something_are_not_stuck(training):
    assert gather(strict().train(training), torch.randn(4, 1, 8, 8)).stuck == []

def test_an_error_that_has_a_name_is_kept_in_a_line():
    ev = gather(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(1, 4))
    stage, says = ev.error
    assert stage == 'forward' and 'more than 1 value' in says and '\n' not in says and ev.depth == 0 and len(ev.layers) == 1

def test_a_sample_is_every_kth_row_from_the_middle_of_the_first():
    x = torch.arange(72.).view(2, 12, 3)
    assert torch.equal(_sample(x, 72 + 1), x) and torch.equal(_sample(x, 18), x[:, 2::5]) and torch.equal(_sample(x[0], 9), x[0, :, 1:2])
    assert torch.equal(_sample(x[None], 18), x[None, :, :, :][..., 2::5, :]) and _sample(torch.tensor(3.), 1) == 3

def test_noise_is_for_examples_and_not_for_what_stands_beside_them():
    class Scaled(nn.Module):
        def __init__(self): super().__init__(); self.head = nn.Linear(400, 2)
        def forward(self, x, scale): return self.head(x*scale)
    model, x, scale = Scaled(), torch.randn(30, 400), torch.linspace(-3, 3, 400)
    with followed(model): assert measure_noise(model, (x,), dict(scale=scale)) == pytest.approx(1, rel=.05)

def test_a_layer_on_a_single_vector_tells_nothing_of_a_batch():
    assert len(gather(nn.Linear(4, 2), torch.randn(4)).layers) == 0 and len(gather(nn.Linear(4, 2), torch.randn(1, 4)).layers) == 1
