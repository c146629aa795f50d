"How a network starts: every rule against its formula, and everything that is not its own left as found"
import copy, math
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from resnotes.blocks import StrictBlock, TakiBlock
from resnotes.report import audit
from resnotes.init import Changes, fillers, init_layers
from resnotes.networks import build
from resnotes.shares import balanced_gains, measure_shares, own_variance
from resnotes.starts import check_start, initialize, rules
from resnotes.summands import apply_gains, harmonic_gains, relu_variance
from resnotes.unet import UNetConfig
from nets import Tiny, images, normed, original, pooled, same, small_resnet, snapshot, strict, transformer

drawing = 'he_normal', 'depth_scaled_normal', 'harmonic', 'fixup'
plain = [name for name in fillers if not name.startswith('depth_scaled')]
example_rules = [rule for rule in rules if rule not in ('default', 'equal_shares')]   # for towers that are no U-Nets

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


# --- the rules, each against its formula ---------------------------------------------------------------------------------
def test_he_is_what_init_layers_draws():
    a = normed()
    b = copy.deepcopy(a)
    initialize(a, images(), rule='he_normal', generator=torch.Generator().manual_seed(1))
    init_layers(b, 'he_normal', generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

@pytest.mark.parametrize('name', plain)
@pytest.mark.parametrize('make', [normed, original, small_resnet, transformer])
def test_plain_fillers_are_what_init_layers_draws(name, make):
    for alias in {name, name.replace('glorot', 'xavier').replace('he_', 'kaiming_')}:
        a = make()
        b = copy.deepcopy(a)
        report = initialize(a, rule=alias, generator=torch.Generator().manual_seed(1))
        init_layers(b, name, generator=torch.Generator().manual_seed(1))
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters())) and report.title == name

def spared():
    "A layer of each kind that a call must spare, between others"
    model = nn.Sequential(nn.Embedding(9, 9), nn.Linear(9, 9, bias=False), nn.Linear(9, 9), nn.Linear(9, 9), weight_norm(nn.Linear(9, 9)), nn.Linear(9, 9),
                          nn.utils.spectral_norm(nn.Linear(9, 9)), nn.LayerNorm(9), nn.GRU(9, 9), nn.Linear(9, 9))
    model[1].weight, model[3].weight = model[0].weight, model[5].weight
    model[2].requires_grad_(False)
    return model

@pytest.mark.parametrize('name', plain)
@pytest.mark.parametrize('only', [None, ['0', '4', '9'], lambda name: 'bias' not in name])
def test_plain_fillers_are_init_layers_where_something_must_be_spared(name, only):
    "Bit by bit, row by row: frozen, tied, computed and unwanted parameters too"
    a = spared()
    b = copy.deepcopy(a)
    kwargs = dict(mode='fan_out', negative_slope=.5) if name.startswith('he') else {}
    reports = (initialize(a, rule=name, only=only, generator=torch.Generator().manual_seed(1), **kwargs),
               init_layers(b, name, only=only, generator=torch.Generator().manual_seed(1), **kwargs))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values())) and str(reports[0]) == str(reports[1])
    assert reports[0] == reports[1] and len(reports[0]) == len({c.parameter for c in reports[0]}) and reports[0].others == reports[1].others
    names = [n for n, _ in a.named_parameters()]
    assert {c.parameter for c in reports[0]} <= set(names) and len(reports[0]) + reports[0].others == len(names)
    assert not reports[0].changed or {c.parameter.split('.')[0] for c in reports[0].changed} <= set('345679')

def test_arguments_of_a_plain_filler_reach_it():
    a, b = nn.Linear(64, 640), nn.Linear(64, 640)
    initialize(a, rule='kaiming_normal', mode='fan_out', truncated=True, generator=torch.Generator().manual_seed(1))
    fillers['he_normal'].fill(b, 'fan_out', 0., True, torch.Generator().manual_seed(1))
    assert torch.equal(a.weight, b.weight)

@pytest.mark.parametrize('rule, arguments, error, text', [
    ('he_normal', dict(ony='1'), TypeError, "the rule 'he_normal' takes rest, only, generator, mode, negative_slope, truncated, got ony"),
    ('xavier_uniform', dict(mode='fan_out'), TypeError, "the rule 'glorot_uniform' takes rest, only, generator, got mode"),
    ('default', dict(mode='fan_out'), TypeError, "the rule 'default' takes only, generator, got mode"),
    ('he_normal', dict(mode='fan_avg'), ValueError, "mode must be one of 'fan_in', 'fan_out', got 'fan_avg'"),
    ('he_normal', dict(negative_slope='steep'), TypeError, "negative_slope must be a real number, got 'steep'"),
    ('he_normal', dict(generator=3), TypeError, 'generator must be a torch.Generator or None, got 3'),
    ('gpt2', dict(generator=3), TypeError, 'generator must be a torch.Generator or None, got 3'),
    ('gpt2', dict(only=3), TypeError, 'only must be names'), ('he_normal', dict(only=nn.ReLU()), TypeError, 'only must be names.*got the module ReLU'),
    ('he_normal', dict(only=[nn.ReLU()]), TypeError, 'only must hold names'), ('default', dict(only=3), TypeError, 'only must be names'),
    ('harmonic', dict(c=0), ValueError, 'c must be greater than 0'), ('gpt2', dict(rest='foo'), ValueError, "rest must be one of .*got 'foo'")])
def test_arguments_are_refused_without_a_model_as_with_one(rule, arguments, error, text):
    with pytest.raises(error, match=text): check_start(rule, **arguments)
    model = strict()
    before = snapshot(model)
    with pytest.raises(error, match=text): initialize(model, rule=rule, **arguments)
    assert same(before, snapshot(model))

def test_only_a_model_knows_what_else_a_rule_of_branches_takes():
    for arguments in (dict(rule='gpt2'), dict(ony='1'), dict(mode='fan_out')):
        with pytest.raises(TypeError, match="the rule 'gpt2' takes c, rest, only, generator, got"): check_start('gpt2', **arguments)
    with pytest.raises(TypeError, match='ony'): initialize(strict(), images(), rule='gpt2', ony='1')

def test_names_are_given_back_as_they_stand_in_the_table():
    for rule in rules: assert check_start(rule) == (rule, None)
    assert check_start('kaiming_uniform', rest='xavier_normal') == ('he_uniform', 'glorot_normal') and check_start('gpt2', c=.5, only=['a', 'b']) == ('gpt2', None)

@pytest.mark.parametrize('rule', example_rules)
@pytest.mark.parametrize('rest', [None, 'lecun_normal'])
@pytest.mark.parametrize('make', [strict, normed, original, transformer, lambda: pooled(*[StrictBlock(8, norm_layer=None)]*3)])
def test_one_row_for_each_parameter(rule, rest, make):
    model = make()
    x = torch.randn(3, 5, 16) if isinstance(model, nn.TransformerEncoder) else images()
    before = copy.deepcopy(model.state_dict())
    report = initialize(model, x, rule=rule, rest=rest)
    names, rows = [n for n, _ in model.named_parameters()], [c.parameter for c in report]
    assert len(rows) == len(set(rows)) and set(rows) <= set(names) and len(rows) + report.others == len(names)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= {c.parameter for c in report.changed}
    for c in report: assert c.before == pytest.approx(before[c.parameter].square().mean().sqrt().item(), rel=1e-5)
    if rest and not rules[rule].fills and rule != 'lsuv': assert any(c.what.startswith(('lecun_normal, then ', 'one, then ')) for c in report.changed)

@pytest.mark.parametrize('rule', ['he_normal', 'depth_scaled_normal', 'gpt2', 'lsuv'])
def test_lazy_layers_ask_for_a_batch_first(rule):
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match='model has weights without a shape: run one batch through it first'): initialize(model, torch.ones(2, 3), rule=rule)
    assert torch.equal(model[0].weight, before)

def test_plain_fillers_draw_from_the_seed_as_init_layers_does():
    a = normed()
    b = copy.deepcopy(a)
    torch.manual_seed(3)
    initialize(a, rule='glorot_uniform')
    torch.manual_seed(3)
    init_layers(b, 'glorot_uniform')
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

@pytest.mark.parametrize('rule', plain)
def test_rest_decides_outside_the_branches_alone(rule):
    model = pooled(*[StrictBlock(32, norm_layer=None) for _ in range(3)], channels=32)
    report = initialize(model, images(), rule=rule, rest='xavier_normal')
    variance = {name: filler.variance for name, filler in fillers.items()}
    for k in range(1, 4):
        for conv in (model[k].branch.conv1, model[k].branch.conv2): assert own_variance(conv) == pytest.approx(variance[rule](conv), rel=.1)
    for layer in (model[0], model[-1]): assert own_variance(layer) == pytest.approx(variance['glorot_normal'](layer), rel=.35)
    if rule != 'glorot_normal': assert {c.why for c in report if c.what == 'glorot_normal'} == {'outside the branches'}

def test_rest_is_drawn_before_what_a_rule_keeps():
    def draw(): return torch.Generator().manual_seed(2)
    for rule in ('gpt2', 'skipinit', 'rezero', 'balanced', 'lsuv'):
        a, x = normed(), images()
        b = copy.deepcopy(a)
        initialize(a, x, rule=rule, rest='he_normal', generator=draw())
        initialize(b, rule='he_normal', generator=draw())
        initialize(b, x, rule=rule)
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

def test_rest_leaves_a_drawn_rule_its_branches():
    a = strict()
    b = copy.deepcopy(a)
    initialize(a, images(), rule='harmonic', rest='lecun_normal', generator=torch.Generator().manual_seed(2))
    initialize(b, images(), rule='harmonic', generator=torch.Generator().manual_seed(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))       # 1/n outside is its own

def test_default_touches_nothing():
    model = normed()
    before = snapshot(model)
    report = initialize(model, rule='default')
    assert same(before, snapshot(model)) and not report and report.others == len(list(model.parameters()))

@pytest.mark.parametrize('rest', [None, 'he_normal', 'glorot_uniform'])
@pytest.mark.parametrize('placement', ['none', 'samplers', 'blocks'])
def test_equal_shares_are_the_closed_form(placement, rest):
    model, size = build(UNetConfig((2, 2, 2), width=32, placement=placement)), (13, 16)
    initialize(model, torch.randn(2, 1, *size), rule='equal_shares', rest=rest)
    gains = balanced_gains(model.config, size, rest or 'lecun_normal')
    blocks = [m for m in model.modules() if isinstance(m, StrictBlock)]
    for block, gain in zip(blocks, gains):
        conv = block.branch.conv2
        assert own_variance(conv) == pytest.approx(gain**2/(relu_variance*conv.weight[0].numel()), rel=.06)

@pytest.mark.parametrize('make', [strict, lambda: build(UNetConfig((1, 1, 1), width=2, skip='add', in_channels=1))])
def test_equal_shares_need_a_strict_unet(make):
    model = make()
    before = snapshot(model)
    with pytest.raises(ValueError, match="model must be a StrictUNet without long skips for the rule 'equal_shares'"): initialize(model, torch.ones(2, 1, 8, 8), rule='equal_shares')
    assert same(before, snapshot(model))

def test_harmonic_is_what_apply_gains_asks_for():
    a = pooled(*[m for _ in range(4) for m in (StrictBlock(64), nn.BatchNorm2d(64))], channels=64)
    b = copy.deepcopy(a)
    initialize(a, images(), rule='harmonic')
    apply_gains(b, harmonic_gains(4))
    for k in range(4): assert own_variance(a[1+2*k].branch.conv2) == pytest.approx(own_variance(b[1+2*k].branch.conv2), rel=.04)

@pytest.mark.parametrize('rule,last', [('he_normal', lambda n, k, L: 2/n), ('depth_scaled_normal', lambda n, k, L: 1/(n*L)), ('harmonic', lambda n, k, L: 1/(relu_variance*n*k)), ('fixup', lambda n, k, L: 0)])
def test_drawn_variances(rule, last):
    model = pooled(*[StrictBlock(64, norm_layer=None) for _ in range(4)], channels=64)
    initialize(model, images(), rule=rule)
    n, L = 9*64, 4
    for k in range(1, L+1):
        inner, end = (own_variance(conv) for conv in (model[k].branch.conv1, model[k].branch.conv2))
        assert inner == pytest.approx(2/n/(L if rule == 'fixup' else 1), rel=.04)     # L^(-1/(2m-2)) is L^(-1/2) for m = 2
        assert end == pytest.approx(last(n, k, L), rel=.04)
    head = own_variance(model[-1])
    assert head == 0 if rule == 'fixup' else head == pytest.approx((2 if rule == 'he_normal' else 1)/64, rel=.25)
    assert not model[0].bias.any() and not model[-1].bias.any()

@pytest.mark.parametrize('rule,square', [('even', lambda k, L: 1/L), ('reversed', lambda k, L: 1/(L+1-k)), ('constant', lambda k, L: 1), ('harmonic', lambda k, L: 1/k), ('zero', lambda k, L: 0)])
@pytest.mark.parametrize('c', [1., .5])
def test_gains_of_the_drawn_recipes(rule, square, c):
    model, n, L = pooled(*[StrictBlock(64, norm_layer=None) for _ in range(4)], channels=64), 9*64, 4
    if rule == 'zero' and c != 1: return
    initialize(model, images(), rule=rule, c=c)
    for k in range(1, L+1):
        assert own_variance(model[k].branch.conv2) == pytest.approx(c*c*square(k, L)/(relu_variance*n), rel=.04)
        assert own_variance(model[k].branch.conv1) == pytest.approx(2/n, rel=.04)
    assert own_variance(model[-1]) == pytest.approx(1/64, rel=.25)

def test_depth_scaled_uniform_is_uniform_everywhere():
    model, n, L = pooled(*[StrictBlock(64, norm_layer=None) for _ in range(4)], channels=64), 9*64, 4
    initialize(model, images(), rule='depth_scaled_uniform')
    for layer, variance in ((model[0], 1/9), (model[1].branch.conv1, 2/n), (model[1].branch.conv2, 1/(n*L)), (model[-1], 1/64)):
        limit = math.sqrt(3*variance)
        assert .97*limit < layer.weight.abs().max() <= limit*(1 + 1e-6)

def test_more_branches_in_streams_than_on_one_way():
    class Streams(nn.Module):
        "Two streams of three blocks each"
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        def forward(self, x):
            ends = []
            for layers in (self.layers[:3], self.layers[3:]):
                y = x
                for f in layers: y = y + f(y.tanh())
                ends.append(y)
            return torch.cat(ends, 1)
    report = initialize(Streams(), torch.randn(4, 8), rule='reversed')
    assert report.title == 'reversed, L = 3' and len(report.changed) == 12

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

@pytest.mark.parametrize('rule,gain', [('he_normal', lambda k: 1), ('depth_scaled_normal', lambda k: 3**-.5), ('harmonic', lambda k: k**-.5), ('fixup', lambda k: 0), ('gpt2', lambda k: 3**-.5), ('skipinit', lambda k: 0)])
def test_a_norm_at_the_end_of_a_branch_takes_the_gain(rule, gain):
    model = original()
    before = model[1].branch.conv2.weight.clone()
    report = initialize(model, images(), rule=rule)
    for k in range(1, 4): assert torch.allclose(model[k].branch.norm2.weight, torch.full((8,), float(gain(k))))
    assert any(c.why == 'norm that ends a branch' for c in report.changed) == (rule != 'he_normal')     # a plain filler knows no ends
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
    initialize(model, x, rule='depth_scaled_normal')

@pytest.mark.parametrize('make', [strict, normed, original, small_resnet, lambda: build(UNetConfig((2, 2, 2), width=4))])
def test_balanced_makes_the_measured_shares_equal(make):
    model, x = make(), images(8, 12)
    initialize(model, x, rule='balanced')
    a = audit(model, x)
    L = len(a.rows)
    assert a.stem == pytest.approx(1/(L+1), rel=1e-3) and all(r.share == pytest.approx(1/(L+1), rel=1e-3) for r in a.rows)

def test_balanced_agrees_with_pushing_every_summand_through():
    model, x = build(UNetConfig((3, 3, 3), width=16, placement='blocks', in_channels=16)), torch.randn(8, 16, 16, 16)
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
    assert len(seen) >= 4 and seen == pytest.approx([1.]*len(seen), rel=1e-5)


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

ways = {'plus': lambda s, x, f: x + f(x), 'alpha': lambda s, x, f: torch.add(x, f(x), alpha=.1), 'by name': lambda s, x, f: torch.add(other=f(x), input=x),
        'minus': lambda s, x, f: x - f(x), 'rsub': lambda s, x, f: torch.rsub(f(x), x, alpha=.3), 'sum': lambda s, x, f: sum([x, f(x)]),
        'lerp': lambda s, x, f: torch.lerp(2*x, 2*f(x), .5), 'addcmul': lambda s, x, f: torch.addcmul(x, s.g, f(x), value=.2),
        'other sums in the line': lambda s, x, f: (1 + x - 1) + f(x + s.g - s.g + 1 - 1), 'turned round': turned_round, 'added to a copy': added_to_a_copy}

@pytest.mark.parametrize('add', ways.values(), ids=ways)
def test_every_way_to_write_a_sum(add):
    model, x = nn.Sequential(*[Block(add) for _ in range(3)]), torch.randn(64, 8)
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
    for rule, gain in (('depth_scaled_normal', lambda k: 3**-.5), ('harmonic', lambda k: (relu_variance*k)**-.5)):
        model = rezero(g)
        report = initialize(model, x, rule=rule)
        assert all((block.g == 1).all() for block in model[1:]) and sum(c.why == 'multiplier at the end of a branch' for c in report.changed) == 3
    model = rezero(g)
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
    assert 'branch 0 adds nothing and none of its parameters gets a gradient' in audit(model, x).findings[0]

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


# --- what may be touched ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('rule', example_rules)
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
    initialize(model, images(), rule='he_normal', only=lambda name: name.endswith('conv1.weight'))
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == {f'{k}.branch.conv1.weight' for k in range(1, 5)}

def test_shared_weights_are_set_once():
    block = StrictBlock(8, norm_layer=None)
    model = pooled(block, block, block)
    before = block.branch.conv2.weight.clone()
    report = initialize(model, images(), rule='gpt2')
    assert torch.allclose(block.branch.conv2.weight, before/math.sqrt(3))
    assert not report.left and len(report) == 1 and report.others == len(list(model.parameters())) - 1

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

@pytest.mark.parametrize('rule', example_rules)
def test_a_parametrised_weight_is_left_and_said(rule):
    model = strict()
    weight_norm(model[1].branch.conv2)
    before = copy.deepcopy(model.state_dict())
    report = initialize(model, images(), rule=rule)
    assert {(c.parameter, c.why) for c in report.left} >= {(f'1.branch.conv2.parametrizations.weight.original{i}', 'part of a parametrisation') for i in (0, 1)[rule in ('gpt2', 'skipinit', 'rezero', 'balanced'):]}
    assert {c.why for c in report.left} == {'part of a parametrisation'} and {c.parameter for c in report} <= {n for n, _ in model.named_parameters()}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if 'parametrizations' in k)

def test_packed_projections_are_left_and_said():
    model = transformer()
    before = model.layers[0].self_attn.in_proj_weight.clone()
    report = initialize(model, torch.randn(3, 5, 16), rule='depth_scaled_normal')
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

def test_report_says_it_in_text_and_html():
    report = initialize(strict(), images(), rule='depth_scaled_normal')
    assert isinstance(report, Changes) and report.title == 'depth_scaled_normal, L = 4'
    assert 'variance c/(nL)' in repr(report) and '<td>variance c/(nL)</td>' in report._repr_html_() and 'all others' not in repr(report)
    assert all(c.after > 0 for c in report.changed if c.what != 'zero')

@pytest.mark.parametrize('rule', example_rules)
def test_only_weights_change(rule):
    model, x = normed(), images()
    model[1].eval()
    model(x).sum().backward()
    grads, before = [p.grad.clone() for p in model.parameters()], snapshot(model)
    initialize(model, x, rule=rule, generator=torch.Generator().manual_seed(0))
    after = snapshot(model)
    statistics = {k: v for k, v in before[0].items() if 'running' in k or 'num_batches' in k}
    if rule in fillers: statistics = {k: v for k, v in normed().state_dict().items() if k in statistics}   # as in a new model
    assert all(torch.equal(v, after[0][k]) for k, v in statistics.items())
    assert torch.equal(before[1], after[1]) and before[2:] == after[2:] and all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))

@pytest.mark.parametrize('rule', ['balanced', 'lsuv'])
@pytest.mark.parametrize('rest', [None, 'he_normal'])
def test_an_error_half_way_takes_everything_back(rule, rest):
    model, x = normed(), images()
    before, calls = snapshot(model), []
    def fail(m, args):
        calls.append(1)
        if len(calls) == 2: raise RuntimeError('stop here')      # the first call finds the branches
    with model[5].register_forward_pre_hook(fail), pytest.raises(RuntimeError, match='stop here'): initialize(model, x, rule=rule, rest=rest)
    after = snapshot(model)
    assert same(before, (after[0], before[1] if rest else after[1], *after[2:]))     # drawing has used the generator

def test_one_seed_one_result():
    a, b = strict(), strict()
    b.load_state_dict(a.state_dict())
    for m in (a, b): initialize(m, images(), generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


# --- refusals ----------------------------------------------------------------------------------------------------------------
def test_unusable_input_is_named():
    model, x, unfit = strict(), images(), nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    before = snapshot(model)
    for args, error, text in [((), ValueError, 'must hold a tensor'), ((3,), ValueError, 'must hold a tensor'),
                              ((torch.full((2, 1, 8, 8), math.nan),), ValueError, 'must be free of NaN, got 128'),
                              ((torch.zeros(0, 1, 8, 8),), ValueError, 'must not be empty'),
                              ((x.to('meta'),), ValueError, 'must be on the device of the model')]:
        with pytest.raises(error, match=text): initialize(model, *args)
    for rule in ('depth_scaled_normal', 'he_normal', 'default'):
        with pytest.raises(TypeError, match='model must be an nn.Module, got int'): initialize(3, x, rule=rule)
    with pytest.raises(ValueError, match='must have residual branches, got Sequential without one'): initialize(unfit, torch.ones(2, 3))
    with pytest.raises(ValueError, match='model must hold a weight layer, got ReLU without one'): initialize(nn.ReLU(), rule='he_normal')
    assert same(before, snapshot(model))

@pytest.mark.parametrize('call, error, text', [
    (lambda m, x: initialize(m, x*math.inf, rule='lsuv'), ValueError, 'model must have a finite signal for this rule, got a deviation of nan behind 0'),
    (lambda m, x: initialize(m, x*math.inf, rule='balanced'), ValueError, 'model must have a finite signal for this rule, got variances nan and nan at branch 1'),
    (lambda m, x: initialize(copy.deepcopy(m).to('meta'), x.to('meta')), ValueError, 'model must have numbers in its weights'),
    (lambda m, x: initialize(m, x, only=3), TypeError, 'only must be names of modules or parameters, a function of a name, or None, got 3')])
def test_what_cannot_be_measured_is_named(call, error, text):
    model = strict()
    before = snapshot(model)
    with pytest.raises(error, match=text): call(model, images())
    after = snapshot(model)
    assert same(before, (after[0], before[1], *after[2:]))      # the call drew its example

@pytest.mark.parametrize('x', [torch.zeros(5, 8), torch.ones(1, 8)])
def test_balanced_leaves_branches_that_do_not_vary(x):
    model = rezero(1.)
    before = snapshot(model)
    report = initialize(model, x, rule='balanced')
    assert not report.changed and same(before, snapshot(model)) and {c.why for c in report.left} == {'adds nothing that varies, or stands beside another branch'}

@pytest.mark.parametrize('settings, text', [
    (dict(rule='best'), "rule must be one of 'lecun_normal', 'lecun_uniform', 'glorot_normal'.*got 'best'"),
    (dict(rule='fixup', c=2), "c must be 1 for the rule 'fixup', got 2"), (dict(rule='he_normal', c=2), "c must be 1 for the rule 'he_normal', got 2"),
    (dict(c=0), 'c must be greater than 0'), (dict(only='head'), "only must name modules or parameters of the model, got 'head'"),
    (dict(rest='depth_scaled_normal'), "rest must be one of 'lecun_normal'.*got 'depth_scaled_normal'"), (dict(rest='harmonic'), 'rest must be one of'),
    (dict(rule='default', rest='he_normal'), "rest must be None for the rule 'default', got 'he_normal'")])
def test_wrong_settings_are_refused(settings, text):
    model, x = strict(), images()
    before = snapshot(model)
    with pytest.raises(ValueError, match=text): initialize(model, x, **settings)
    assert same(before, snapshot(model))

@pytest.mark.parametrize('factor', [1e-4, 1e3])
def test_balanced_takes_branches_of_any_size(factor):
    "What decides whether a branch varies is no number but its share"
    model, x = strict(), images()
    with torch.no_grad():
        for block in model[1:5]: block.branch.conv2.weight.mul_(factor)
    initialize(model, x, rule='balanced')
    assert [r.gain for r in audit(model, x).rows] == pytest.approx([k**-.5 for k in range(1, 5)], rel=1e-3)

def test_fixup_scales_inner_layers_by_the_depth_and_their_number():
    "L^(-1/(2m-2)) for m layers in a branch; here two, so that the inner one takes L^(-1/2)"
    def drawn(rule):
        torch.manual_seed(0)
        initialize(model := strict(4), images(), rule=rule)
        return [block.branch.conv1.weight for block in model[1:5]]
    for p, q in zip(drawn('fixup'), drawn('zero')): torch.testing.assert_close(p, q/2)

@pytest.mark.parametrize('rule', ['gpt2', 'balanced', 'depth_scaled_normal', 'lsuv'])
def test_weights_need_numbers_where_branches_are_looked_for(rule):
    with pytest.raises(ValueError, match='must have numbers in its weights'): initialize(strict().to('meta'), images().to('meta'), rule=rule)

def test_fixup_leaves_the_single_layer_before_a_norm_its_size():
    class One(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        def forward(self, x): return x + self.norm(self.conv(x))
    def drawn(rule):
        torch.manual_seed(0)
        initialize(model := pooled(One(), One()), images(), rule=rule)
        return [block.conv.weight for block in model[1:3]]
    for p, q in zip(drawn('fixup'), drawn('zero')): torch.testing.assert_close(p, q)

def test_rules_with_a_factor_of_ones_own():
    assert {name for name, r in rules.items() if r.takes_c} == {'depth_scaled_normal', 'depth_scaled_uniform', 'harmonic', 'even', 'reversed', 'constant', 'gpt2', 'balanced'}
    with pytest.raises(ValueError, match="c must be 1 for the rule 'equal_shares', got 2"): check_start('equal_shares', c=2.)
