"Initialising and auditing: every rule against its formula, the audit against a hand-written graph, and everything left as found"
import copy, math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from resnotes.blocks import BasicBlock, StrictBlock, TakiBlock
from resnotes.diagnose import Audit, audit, initialize, residual_branches, rules
from resnotes.init import he_normal, init_layers
from resnotes.resnet import ResNetConfig, build as build_resnet
from resnotes.summands import apply_gains, harmonic_gains, measure_shares, own_variance, relu_variance
from resnotes.unet import UNetConfig, build as build_unet

drawing = 'he', 'depth_scaled', 'harmonic', 'fixup'

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def pooled(*layers, channels=8): return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
def strict(n=4, norm=None): return pooled(*[StrictBlock(8, norm=norm) for _ in range(n)])
def normed(n=4): return pooled(*[m for _ in range(n) for m in (StrictBlock(8), nn.BatchNorm2d(8))])
def original(n=3): return pooled(*[BasicBlock(8, 8) for _ in range(n)])                                   # ends on a norm, ReLU after the addition
def small_resnet(): return build_resnet(ResNetConfig((2, 2), 8, norm=False, in_channels=1, stem_width=8))
def transformer(n=2, dropout=0.): return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True), n)
images = lambda n=6, size=8: torch.randn(n, 1, size, size)

class Tiny(nn.Module):
    "x + W2 relu(W1 x), twice, then a head; written out so that it can be followed by hand"
    def __init__(self, inplace=False):
        super().__init__()
        self.layers, self.head, self.inplace = nn.ModuleList(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3), inplace
    def forward(self, x):
        self.sums, self.branches = [], []
        for a, b in (self.layers[:2], self.layers[2:]):
            f = b(a(x).relu())
            self.branches.append(f)
            if self.inplace:
                x = x.clone()
                x += f
                self.sums.append(x.clone())
            else: self.sums.append(x := x + f)
        return self.head(x)

def snapshot(model):
    return ({k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state(), [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()])

def same(a, b): return all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]


# --- the rules, each against its formula ---------------------------------------------------------------------------------
def test_he_is_what_init_layers_draws():
    a = normed()
    b = copy.deepcopy(a)
    initialize(a, images(), rule='he', generator=torch.Generator().manual_seed(1))
    init_layers(b, he_normal, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

def test_harmonic_is_what_apply_gains_asks_for():
    a = pooled(*[m for _ in range(4) for m in (StrictBlock(64), nn.BatchNorm2d(64))], channels=64)
    b = copy.deepcopy(a)
    initialize(a, images(), rule='harmonic')
    apply_gains(b, harmonic_gains(4))
    for k in range(4): assert own_variance(a[1+2*k].branch.conv2) == pytest.approx(own_variance(b[1+2*k].branch.conv2), rel=.04)

@pytest.mark.parametrize('rule,last', [('he', lambda n, k, L: 2/n), ('depth_scaled', lambda n, k, L: 1/(n*L)), ('harmonic', lambda n, k, L: 1/(relu_variance*n*k)), ('fixup', lambda n, k, L: 0)])
def test_drawn_variances(rule, last):
    model = pooled(*[StrictBlock(64, norm=None) for _ in range(4)], channels=64)
    initialize(model, images(), rule=rule)
    n, L = 9*64, 4
    for k in range(1, L+1):
        inner, end = (own_variance(conv) for conv in (model[k].branch.conv1, model[k].branch.conv2))
        assert inner == pytest.approx(2/n/(L if rule == 'fixup' else 1), rel=.04)     # L^(-1/(2m-2)) is L^(-1/2) for m = 2
        assert end == pytest.approx(last(n, k, L), rel=.04)
    head = own_variance(model[-1])
    assert head == 0 if rule == 'fixup' else head == pytest.approx((2 if rule == 'he' else 1)/64, rel=.25)
    assert not model[0].bias.any() and not model[-1].bias.any()

@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.floats(.1, 10))
def test_gpt2_multiplies_weight_and_bias_and_nothing_else(depth, c):
    model = Tiny()
    model.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2*depth))
    model.forward = lambda x: [x := x + b(a(x).relu()) for a, b in zip(model.layers[::2], model.layers[1::2])][-1]
    before = copy.deepcopy(model.state_dict())
    report = initialize(model, torch.randn(3, 6), rule='gpt2', c=c)
    for name, p in model.named_parameters():
        scaled = name.startswith('layers') and int(name.split('.')[1])%2
        assert torch.allclose(p, before[name]*(c/math.sqrt(depth) if scaled else 1))
    assert len(report.changed) == 2*depth and report.others == 2*depth + 2

@pytest.mark.parametrize('rule', ['skipinit', 'rezero', 'fixup'])
def test_zero_rules_leave_the_identity(rule):
    model = strict()
    initialize(model, images(), rule=rule)
    x = model[0](images())
    assert torch.equal(model[1:5](x), x)

@pytest.mark.parametrize('rule,gain', [('he', lambda k: 1), ('depth_scaled', lambda k: 3**-.5), ('harmonic', lambda k: k**-.5), ('fixup', lambda k: 0), ('gpt2', lambda k: 3**-.5), ('skipinit', lambda k: 0)])
def test_a_norm_at_the_end_of_a_branch_takes_the_gain(rule, gain):
    model = original()
    before = model[1].branch.conv2.weight.clone()
    report = initialize(model, images(), rule=rule)
    for k in range(1, 4): assert torch.allclose(model[k].branch.norm2.weight, torch.full((8,), float(gain(k))))
    assert any(c.why == 'norm that ends a branch' for c in report.changed)
    if rule not in drawing: assert torch.equal(model[1].branch.conv2.weight, before)

@pytest.mark.parametrize('norm', [nn.RMSNorm, nn.LayerNorm, partial(nn.LayerNorm, bias=False)])
def test_norms_with_and_without_a_bias_take_the_factor(norm):
    class Sandwiched(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), norm(8)
        def forward(self, x): return x + self.norm(self.b(self.a(x).relu()))
    model, x = nn.Sequential(Sandwiched(), Sandwiched()), torch.randn(4, 8)
    initialize(model, x, rule='gpt2')
    assert all(torch.allclose(m.norm.weight, torch.full((8,), 2**-.5)) for m in model)
    initialize(model, x, rule='skipinit')
    assert torch.equal(model(x), x)

@pytest.mark.parametrize('rule', ['fixup', 'skipinit', 'rezero'])
@pytest.mark.parametrize('norm', [None, nn.BatchNorm2d])
def test_zero_behind_which_a_relu_stands_is_refused(rule, norm):
    model, x = pooled(*[TakiBlock(8, 3, norm) for _ in range(3)]), images()
    before = snapshot(model)
    with pytest.raises(ValueError, match='a ReLU or a zero stands behind the last layer of branch 1'): initialize(model, x, rule=rule)
    assert same(before, snapshot(model))
    initialize(model, x, rule='depth_scaled')

@pytest.mark.parametrize('make', [strict, normed, original, small_resnet, lambda: build_unet(UNetConfig((2, 2, 2), width=4))])
def test_balanced_makes_the_measured_shares_equal(make):
    model, x = make(), images(8, 12)
    initialize(model, x, rule='balanced')
    a = audit(model, x)
    L = len(a.rows)
    assert a.stem == pytest.approx(1/(L+1), rel=1e-3) and all(r.share == pytest.approx(1/(L+1), rel=1e-3) for r in a.rows)

def test_balanced_agrees_with_pushing_every_summand_through():
    model, x = build_unet(UNetConfig((3, 3, 3), width=16, norm='blocks', in_channels=16)), torch.randn(8, 16, 16, 16)
    initialize(model, x, rule='balanced')
    last = [r.share for r in measure_shares(model, x) if r.stage == 2]
    assert all(.5 < s*10 < 2 for s in last)       # terms of one draw are not exactly uncorrelated

@pytest.mark.parametrize('make,x', [(strict, images()), (small_resnet, images()), (transformer, torch.randn(4, 5, 16))])
def test_lsuv_gives_every_layer_unit_variance(make, x):
    model, seen = make(), []
    initialize(model, x, rule='lsuv')
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)): m.register_forward_hook(lambda m, args, out: seen.append(out.var(correction=0).item()))
    model.eval()(x.requires_grad_())
    assert len(seen) >= 4 and seen == pytest.approx([1.]*len(seen), rel=1e-3)


class Block(nn.Module):
    "Two linear layers and a vector; the sum is written by a function of the module, the input, and the branch"
    def __init__(self, add, n=8, g=.5):
        super().__init__()
        self.a, self.b, self.g, self.add = nn.Linear(n, n), nn.Linear(n, n), nn.Parameter(torch.full((n,), g)), add
    def forward(self, x): return self.add(self, x, lambda x: self.b(self.a(x).tanh()))

def turned_round(s, x, f):
    y = f(x)
    y.add_(x)
    return y

def added_to_a_copy(s, x, f):
    y, x = f(x), x.clone()
    x += y
    return x

ways = {'plus': (lambda s, x, f: x + f(x), 1), 'alpha': (lambda s, x, f: torch.add(x, f(x), alpha=.1), .1), 'by name': (lambda s, x, f: torch.add(other=f(x), input=x), 1),
        'minus': (lambda s, x, f: x - f(x), 1), 'rsub': (lambda s, x, f: torch.rsub(f(x), x, alpha=.3), .3), 'sum': (lambda s, x, f: sum([x, f(x)]), 1),
        'lerp': (lambda s, x, f: torch.lerp(2*x, 2*f(x), .5), 1), 'addcmul': (lambda s, x, f: torch.addcmul(x, s.g, f(x), value=.2), .1),
        'other sums in the line': (lambda s, x, f: (1 + x - 1) + f(x + s.g - s.g + 1 - 1), 1), 'turned round': (turned_round, 1), 'added to a copy': (added_to_a_copy, 1)}

@pytest.mark.parametrize('add, factor', ways.values(), ids=ways)
def test_every_way_to_write_a_sum(add, factor):
    model, x = nn.Sequential(*[Block(add) for _ in range(3)]), torch.randn(64, 8)
    signal = x
    for r, block in zip(audit(model, x).rows, model):
        f = factor*block.b(block.a(signal).tanh())
        assert r.branch == pytest.approx(f.square().mean().item(), rel=1e-4)
        assert r.gain == pytest.approx(math.sqrt(f.var(0, correction=0).mean()/signal.var(0, correction=0).mean()), rel=1e-4)
        signal = block(signal)
        assert r.main == pytest.approx(signal.square().mean().item(), rel=1e-4)
    report = initialize(model, x, rule='balanced')
    assert [r.gain for r in audit(model, x).rows] == pytest.approx([1, 2**-.5, 3**-.5], rel=1e-3) and not report.left

def rezero(g, n=3): return nn.Sequential(nn.Linear(8, 8), *[Block(lambda s, x, f: x + s.g*f(x), g=g) for _ in range(n)])

@pytest.mark.parametrize('g', [0., 1e-6])
def test_a_multiplier_at_the_end_is_part_of_the_rule(g):
    x = torch.randn(64, 8)
    for rule in ('skipinit', 'rezero', 'fixup'):
        model = rezero(g)
        initialize(model, x, rule=rule)
        assert not any(block.g.any() for block in model[1:]) and all(block.b.weight.any() for block in model[1:])
        if rule != 'fixup': continue
        before = copy.deepcopy(model.state_dict())
        opt = torch.optim.SGD(model.parameters(), .1)
        for _ in range(3): opt.zero_grad(), model(x).sub(1).square().mean().backward(), opt.step()
        assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for rule, gain in (('depth_scaled', lambda k: 3**-.5), ('harmonic', lambda k: (relu_variance*k)**-.5)):
        model = rezero(g)
        report = initialize(model, x, rule=rule)
        assert all((block.g == 1).all() for block in model[1:]) and sum(c.why == 'multiplier at the end of a branch' for c in report.changed) == 3
    model, weights = rezero(g), {}
    initialize(model, x, rule='gpt2')
    assert all(block.g[0].item() == pytest.approx(g/math.sqrt(3)) for block in model[1:])
    report = initialize(model, x, rule='balanced')
    if g: assert [r.gain for r in audit(model, x).rows] == pytest.approx([1, 2**-.5, 3**-.5], rel=1e-3)
    else: assert {c.why for c in report.left} == {'adds nothing that varies, or stands beside another branch'}

def test_zero_behind_a_closed_gate_is_refused():
    model, x = nn.Sequential(*[Block(lambda s, x, f: x + s.g.tanh()*f(x), g=0.) for _ in range(2)]), torch.randn(4, 8)
    before = snapshot(model)
    with pytest.raises(ValueError, match='a ReLU or a zero stands behind the last layer of branch 1 \\(0.b\\)'): initialize(model, x, rule='skipinit')
    assert same(before, snapshot(model)) and not audit(model, x).findings
    for block in model: nn.init.zeros_(block.b.weight), nn.init.zeros_(block.b.bias)
    assert 'branch 1 adds nothing and none of its parameters gets a gradient' in audit(model, x).findings[0]

def test_zero_in_parallel_branches_before_a_relu_is_refused():
    model = nn.Sequential(Block(lambda s, x, f: x + (s.a(x).tanh() + s.b(x).relu())))
    with pytest.raises(ValueError, match='branch 2'): initialize(model, torch.randn(4, 8), rule='skipinit')

class Experts(nn.Module):
    "Rows go to one of three experts"
    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))
    def forward(self, x):
        weight, number = self.router(x).softmax(1).max(1)
        y = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = (number == k).nonzero()[:, 0]
            y = y.index_add(0, rows, weight[rows, None]*expert(x[rows]))
        return x + y

def test_all_experts_are_scaled():
    model, x = Experts(), torch.randn(64, 8)
    before = copy.deepcopy(model.state_dict())
    initialize(model, x, rule='gpt2', c=.25)
    for n, p in model.named_parameters(): assert torch.allclose(p, before[n]*(.25 if n.split('.')[2:3] == ['2'] else 1))
    initialize(model, x, rule='balanced')
    assert audit(model, x).rows[0].gain == pytest.approx(1, rel=1e-3)
    initialize(model, x, rule='skipinit')
    assert torch.equal(model(x), x)

def test_recurrent_ends_and_half_frozen_ends_stay():
    class Recurrent(nn.LSTM):
        def forward(self, x): return x + super().forward(x)[0]
    class Corrected(nn.Module):
        "A frozen layer with a low-rank correction"
        def __init__(self):
            super().__init__()
            self.c, self.a, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 2), nn.Linear(2, 8)
        def forward(self, x): return x + (lambda h: self.a(h) + self.up(self.down(h)))(self.c(x).tanh())
    for model, x, why in ((Recurrent(8, 8), torch.randn(5, 3, 8), {'recurrent: its output does not follow the size of its weights'}),
                          (Corrected(), torch.randn(5, 8), {'frozen', 'ends a branch beside one that stays'})):
        before = copy.deepcopy(model.state_dict())
        for rule in ('gpt2', 'skipinit', 'balanced'):
            report = initialize(model, x, rule=rule)
            assert not report.changed and {c.why for c in report.left} == why
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

@pytest.mark.parametrize('size', [12, 8])
def test_features_behind_a_linear_layer_among_channels(size):
    class Next(nn.Module):
        "Depthwise convolution, then linear layers on the channels, as in ConvNeXt"
        def __init__(self):
            super().__init__()
            self.depthwise, self.a, self.b = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(6, 24), nn.Linear(24, 6)
        def forward(self, x):
            self.f = self.b(self.a(self.depthwise(x).movedim(1, 3)).tanh()).movedim(3, 1)
            return x + self.f
    model, x = Next(), torch.randn(4, 6, size, size) + 10*torch.randn(6, 1, 1)
    a, variance = audit(model, x), lambda t: t.var((0, 2, 3), correction=0).mean().item()
    assert a.rows[0].gain == pytest.approx(math.sqrt(variance(model.f)/variance(x)), rel=1e-4)


# --- what may be touched ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('rule', rules)
def test_frozen_and_unwanted_parameters_stay(rule):
    model = strict()
    model[1].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    report = initialize(model, images(), rule=rule, only=['1', '2'])
    for name, p in model.named_parameters(): assert name.startswith('2.') or torch.equal(p, before[name])
    assert not torch.equal(model[2].branch.conv2.weight, before['2.branch.conv2.weight'])
    assert {c.why for c in report.left} == {'frozen', 'not among only'} and [p.requires_grad for p in model[1].parameters()] == [False, False]

def test_only_takes_a_function_of_the_name():
    model = strict()
    before = copy.deepcopy(model.state_dict())
    initialize(model, images(), rule='he', only=lambda name: name.endswith('conv1.weight'))
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == {f'{k}.branch.conv1.weight' for k in range(1, 5)}

def test_shared_weights_are_set_once():
    block = StrictBlock(8, norm=None)
    model = pooled(block, block, block)
    before = block.branch.conv2.weight.clone()
    report = initialize(model, images(), rule='gpt2')
    assert torch.allclose(block.branch.conv2.weight, before/math.sqrt(3))
    assert [c.why for c in report.left] == ['shared, and set already']*2

def test_a_classifier_tied_to_an_embedding_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.a, self.b, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 11)
            self.head.weight = self.embed.weight
        def forward(self, i):
            x = self.embed(i)
            return self.head(x + self.b(self.a(x).relu()))
    for rule in drawing:
        model = Tied()
        before = model.embed.weight.clone()
        report = initialize(model, torch.arange(8)[None], rule=rule)
        assert torch.equal(model.embed.weight, before) and [c.parameter for c in report.left] == ['embed.weight']

@pytest.mark.parametrize('rule', rules)
def test_a_parametrised_weight_is_left_and_said(rule):
    model = strict()
    weight_norm(model[1].branch.conv2)
    before = copy.deepcopy(model.state_dict())
    report = initialize(model, images(), rule=rule)
    assert {c.why for c in report.left} == {'part of a parametrisation'}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if 'parametrizations' in k)

def test_packed_projections_are_left_and_said():
    model = transformer()
    before = model.layers[0].self_attn.in_proj_weight.clone()
    report = initialize(model, torch.randn(3, 5, 16), rule='depth_scaled')
    assert {(c.parameter, c.why) for c in report.left} == {(f'layers.{i}.self_attn.in_proj_weight', 'held by another kind of layer') for i in range(2)}
    assert torch.equal(model.layers[0].self_attn.in_proj_weight, before)

def test_balanced_leaves_parallel_branches_and_branches_that_add_nothing():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            nn.init.zeros_(self.c.weight), nn.init.zeros_(self.c.bias)
        def forward(self, x):
            x = x + (self.a(x) + self.b(x))
            return x + self.c(x)
    report = initialize(Parallel(), torch.randn(9, 6), rule='balanced')
    assert not report.changed and {c.parameter for c in report.left} == {f'{n}.{kind}' for n in 'abc' for kind in ('weight', 'bias')}
    a = audit(Parallel(), v := torch.randn(40, 6))
    assert len(a.rows) == 3 and a.stem + sum(r.share for r in a.rows) == pytest.approx(1) and a.rows[2].branch == 0

def test_report_says_it_in_text_and_html():
    report = initialize(strict(), images(), rule='depth_scaled')
    assert 'variance c/(nL)' in repr(report) and '<td>variance c/(nL)</td>' in report._repr_html_() and 'all others' not in repr(report)
    assert report.depth == 4 and all(c.after > 0 for c in report.changed if c.what != 'zero')

@pytest.mark.parametrize('rule', rules)
def test_only_weights_change(rule):
    model, x = normed(), images()
    model[1].eval()
    model(x).sum().backward()
    grads, before = [p.grad.clone() for p in model.parameters()], snapshot(model)
    initialize(model, x, rule=rule, generator=torch.Generator().manual_seed(0))
    after = snapshot(model)
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0] if 'running' in k or 'num_batches' in k)
    assert torch.equal(before[1], after[1]) and before[2:] == after[2:] and all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))

@pytest.mark.parametrize('rule', ['balanced', 'lsuv'])
def test_an_error_half_way_takes_everything_back(rule):
    model, x = normed(), images()
    before, calls = snapshot(model), []
    def fail(m, args):
        calls.append(1)
        if len(calls) == 2: raise RuntimeError('stop here')      # the first call finds the branches
    with model[5].register_forward_pre_hook(fail), pytest.raises(RuntimeError, match='stop here'): initialize(model, x, rule=rule)
    assert same(before, snapshot(model))

def test_one_seed_one_result():
    a, b = strict(), strict()
    b.load_state_dict(a.state_dict())
    for m in (a, b): initialize(m, images(), generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


# --- the audit, against a graph written out by hand --------------------------------------------------------------------------
@pytest.mark.parametrize('inplace', [False, True])
def test_audit_matches_a_graph_by_hand(inplace):
    model, x, y = Tiny(inplace), torch.randn(32, 6), torch.randint(0, 3, (32,))
    a = audit(model, x, y, loss=F.cross_entropy)
    model.double()
    loss = F.cross_entropy(model(x.double()), y)
    reference = Tiny()
    reference.load_state_dict(model.state_dict())
    loss = F.cross_entropy(reference.double()(x.double()), y)
    grads = torch.autograd.grad(loss, reference.sums)
    stream, chain = x.double(), []
    for r, s, f, g in zip(a.rows, reference.sums, reference.branches, grads):
        assert r.main == pytest.approx(s.square().mean().item(), rel=1e-5) and r.branch == pytest.approx(f.square().mean().item(), rel=1e-5)
        assert r.gradient == pytest.approx(g.square().mean().item(), rel=1e-4)
        chain.append((f.var(0, correction=0).mean()/stream.var(0, correction=0).mean()).item())
        assert r.gain == pytest.approx(math.sqrt(chain[-1]), rel=1e-4)
        stream = s
    assert a.rows[0].share == pytest.approx(chain[0]/(1+chain[0])/(1+chain[1]), rel=1e-4)
    assert a.stem + sum(r.share for r in a.rows) == pytest.approx(1) and a.depth == 2

@pytest.mark.parametrize('make,x', [(normed, images()), (transformer, torch.randn(3, 5, 16)), (small_resnet, images())])
@pytest.mark.parametrize('training', [True, False])
def test_audit_leaves_everything(make, x, training):
    model = make().train(training)
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    assert isinstance(audit(model, x), Audit)
    with torch.no_grad(): audit(model, x)
    with torch.inference_mode(): audit(model, x)
    assert same(before, snapshot(model))

def test_audit_leaves_everything_after_an_error():
    model, x = normed(), images()
    before = snapshot(model)
    def broken(out): raise RuntimeError('no loss today')
    with pytest.raises(RuntimeError, match='no loss today'): audit(model, x, loss=broken)
    with model[5].register_forward_pre_hook(lambda m, args: 1/0), pytest.raises(ZeroDivisionError): audit(model, x)
    assert same(before, snapshot(model))

def test_dropout_is_active_in_training_and_its_random_numbers_are_given_back():
    model, x = transformer(dropout=.5), torch.randn(3, 5, 16)
    state = torch.random.get_rng_state()
    assert [r.main for r in audit(model, x).rows] == [r.main for r in audit(model, x).rows]
    assert torch.equal(state, torch.random.get_rng_state()) and audit(model, x).rows[0].main != audit(model.eval(), x).rows[0].main

def test_a_model_all_frozen_can_be_audited():
    model = strict()
    reference = audit(model, x := images())
    frozen = audit(model.requires_grad_(False), x)
    assert [r.gradient for r in frozen.rows] == [r.gradient for r in reference.rows] and frozen.rows[0].gradient > 0

def test_channels_last_and_non_contiguous_inputs_give_the_same():
    model, x = strict(), images(4)
    reference = audit(model, x).to_frame()[['main', 'branch', 'gradient', 'share']].to_numpy()
    wide = torch.randn(4, 1, 8, 16)
    wide[..., ::2] = x
    for m, v in ((copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)), (model, wide[..., ::2])):
        assert audit(m, v).to_frame()[['main', 'branch', 'gradient', 'share']].to_numpy() == pytest.approx(reference, rel=1e-3)

@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))])
def test_autocast_and_half_precision_stay_close(device):
    model, x = strict().to(device), images().to(device)
    reference = audit(model, x)
    with torch.autocast(device, torch.bfloat16): mixed = audit(model, x)
    half = audit(copy.deepcopy(model).bfloat16(), x.bfloat16())
    for other in (mixed, half):
        for r, s in zip(reference.rows, other.rows): assert s.main == pytest.approx(r.main, rel=.1) and s.gradient == pytest.approx(r.gradient, rel=.3)
    with torch.autocast(device, torch.bfloat16): initialize(model, x, rule='balanced')
    assert audit(model, x).stem == pytest.approx(1/5, rel=.1)

@pytest.mark.parametrize('n,size', [(1, 8), (1, 1), (5, 1)])
def test_one_example_and_one_pixel(n, size):
    a = audit(strict(), torch.randn(n, 1, size, size))
    assert len(a.rows) == 4 and all(math.isfinite(r.main) and r.gradient >= 0 for r in a.rows)

def test_tokens_lists_and_names():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.encoder = nn.Embedding(9, 16), transformer()
        def forward(self, tokens, scale=None): return {'logits': self.encoder(self.embed(tokens)*scale), 'other': [torch.zeros(2)]}
    a = audit(Model(), torch.randint(0, 9, (3, 5)), scale=torch.ones(16))
    assert len(a.rows) == 4 and a.rows[0].gradient > 0

def test_more_than_float32_can_square():
    model = strict(40)
    with torch.no_grad():
        for k in range(1, 41): model[k].branch.conv2.weight.mul_(30)
    a = audit(model, images())
    assert a.rows[-1].main > 1e39 and math.isfinite(a.rows[-1].main) and any('grows' in f for f in a.findings)


# --- findings ----------------------------------------------------------------------------------------------------------------
def test_findings_name_what_is_wrong():
    says, notes = (lambda a, text, of=of: any(text in f for f in getattr(a, of)) for of in ('findings', 'notes'))
    deep = init_layers(normed(40), he_normal)
    plateau = audit(deep, x := images(16))
    assert says(plateau, 'expect a plateau') and says(plateau, 'a norm stands on the main path') and says(plateau, 'times as large at the first branch')
    initialize(deep, x, rule='harmonic')
    assert not says(audit(deep, x), 'plateau')
    assert notes(audit(deep.eval(), x), 'running statistics')
    explosive = init_layers(strict(40), he_normal)
    assert says(audit(explosive, x), 'grows')
    initialize(explosive, x, rule='skipinit')
    assert notes(audit(explosive, x), '40 of 40 branches add nothing') and not audit(explosive, x).findings
    initialize(explosive, x, rule='fixup')
    assert notes(audit(explosive, x), 'no gradient comes back') and 'no gradient comes back' in repr(audit(explosive, x))
    with torch.no_grad(): explosive[3].branch.conv2.weight.fill_(math.inf)
    assert says(audit(explosive, x), 'not finite from branch 3')

def test_dead_and_saturated_units_are_found():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            nn.init.constant_(self.a.bias[:6], -100), nn.init.zeros_(self.a.bias[6:])
            nn.init.constant_(self.b.bias, 50)
        def forward(self, x):
            x = x + self.b(self.a(x).relu())
            return x + torch.sigmoid(self.b(x))
    a = audit(Gated(), torch.randn(64, 8))
    assert a.rows[0].dead == .75 and math.isnan(a.rows[0].saturated) and a.rows[1].saturated > .9
    assert any('75%' in f for f in a.findings) and any('flat' in f for f in a.findings)

def test_nothing_stands_out_in_a_good_start():
    model, x = strict(30), images(16)
    initialize(model, x, rule='depth_scaled')
    a = audit(model, x)
    assert a.findings == [] and 'nothing stands out' in repr(a) and 'nothing stands out' in a._repr_html_() and '…' in repr(a)

def test_frame_and_plot():
    import matplotlib.pyplot as plt
    a = audit(strict(), images())
    assert list(a.to_frame().columns) == ['module', 'main', 'branch', 'gain', 'share', 'gradient', 'dead', 'saturated', 'norm'] and len(a.to_frame()) == 4
    axs = a.plot(label='here')
    assert [len(ax.lines) for ax in axs] == [1, 1, 1] and list(axs[1].lines[0].get_ydata()) == [r.share for r in a.rows]
    assert a.plot(axs) is axs and len(axs[0].lines) == 2
    plt.close('all')


# --- refusals ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('call', [lambda m, *x: audit(m, *x), lambda m, *x: initialize(m, *x)])
def test_unusable_input_is_named(call):
    model, x, plain = strict(), images(), nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    before = snapshot(model)
    for args, error, text in [((), ValueError, 'must hold a tensor'), ((3,), ValueError, 'must hold a tensor'),
                              ((torch.full((2, 1, 8, 8), math.nan),), ValueError, 'must be free of NaN, got 128'),
                              ((torch.zeros(0, 1, 8, 8),), ValueError, 'must not be empty'),
                              ((x.to('meta'),), ValueError, 'must be on the device of the model')]:
        with pytest.raises(error, match=text): call(model, *args)
    with pytest.raises(TypeError, match='model must be an nn.Module, got int'): call(3, x)
    with pytest.raises(ValueError, match='must have residual branches, got Sequential without one'): call(plain, torch.ones(2, 3))
    assert same(before, snapshot(model))

@pytest.mark.parametrize('call, error, text', [
    (lambda m, x: initialize(m, x*math.inf, rule='lsuv'), ValueError, 'model must have a finite signal for this rule, got a deviation of nan behind 0'),
    (lambda m, x: initialize(m, x*math.inf, rule='balanced'), ValueError, 'model must have a finite signal for this rule, got variances nan and nan at branch 1'),
    (lambda m, x: initialize(copy.deepcopy(m).to('meta'), x.to('meta')), ValueError, 'model must have numbers in its weights'),
    (lambda m, x: audit(copy.deepcopy(m).to('meta'), x.to('meta')), ValueError, 'model must have numbers in its weights'),
    (lambda m, x: initialize(m, x, only=3), TypeError, 'only must be names of modules or parameters, a function of a name, or None, got 3'),
    (lambda m, x: audit(m, x, loss=3), TypeError, 'loss must be a function of the output and the target, or None, got 3'),
    (lambda m, x: audit(Block(lambda s, x, f: x + f(x)), torch.randn(8)), ValueError, 'got another addition in branch 1, at .*test_diagnose.py'),
    (lambda m, x: audit(torch.jit.script(Scripted()), torch.randn(2, 8)), ValueError, 'must add its branches in Python')])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_what_cannot_be_measured_is_named(call, error, text):
    model = strict()
    before = snapshot(model)
    with pytest.raises(error, match=text): call(model, images())
    after = snapshot(model)
    assert same(before, (after[0], before[1], *after[2:]))      # the call drew its example

class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
    def forward(self, x): return x + self.a(x)

@pytest.mark.parametrize('x', [torch.zeros(5, 8), torch.ones(1, 8)])
def test_balanced_leaves_branches_that_do_not_vary(x):
    model = rezero(1.)
    before = snapshot(model)
    report = initialize(model, x, rule='balanced')
    assert not report.changed and same(before, snapshot(model)) and {c.why for c in report.left} == {'adds nothing that varies, or stands beside another branch'}

def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="rule must be one of 'he', 'depth_scaled'"): initialize(strict(), images(), rule='best')
    with pytest.raises(ValueError, match="c must be 1 for the rule 'fixup', got 2"): initialize(strict(), images(), rule='fixup', c=2)
    with pytest.raises(ValueError, match='c must be greater than 0'): initialize(strict(), images(), c=0)
    with pytest.raises(ValueError, match="only must name modules or parameters of the model, got 'head'"): initialize(strict(), images(), only='head')
    with pytest.raises(ValueError, match='loss must return one number'): audit(strict(), images(), loss=lambda out: out)
    with pytest.raises(ValueError, match='loss must return one number'): audit(strict(), images(), loss=lambda out: torch.tensor(1.))


# --- at the start of training ----------------------------------------------------------------------------------------------
try: from resnotes.train import AuditAtStart
except ImportError: AuditAtStart = None

@pytest.mark.skipif(AuditAtStart is None, reason='resnotes.train without AuditAtStart')
def test_audit_at_start_warns_once_and_changes_nothing():
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from resnotes.data import digits
    def trained(*cbs):
        torch.manual_seed(0)
        learn = Learner(digits(), init_layers(strict(30), he_normal), loss_func=CrossEntropyLossFlat(), cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-6)
        return learn
    plain = trained()
    with pytest.warns(UserWarning, match='grows') as warned: learn = trained(AuditAtStart())
    assert sum('grows' in str(w.message) for w in warned) == 1 and len(learn.audit_at_start.record()['share']) == 30
    assert all(torch.equal(p, q) for p, q in zip(plain.model.parameters(), learn.model.parameters()))
    resumed = AuditAtStart()
    resumed.load_state_dict(learn.audit_at_start.state_dict())
    assert trained(resumed).audit_at_start.report is None and resumed.record() == learn.audit_at_start.record()

@pytest.mark.skipif(AuditAtStart is None, reason='resnotes.train without AuditAtStart')
def test_audit_at_start_says_why_it_could_not():
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from resnotes.data import digits
    learn = Learner(digits(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), loss_func=CrossEntropyLossFlat(), cbs=AuditAtStart())
    with pytest.warns(UserWarning, match='not audited: model must have residual branches'), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-6)
