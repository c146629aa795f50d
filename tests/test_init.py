"Properties of the fillers and fans beyond what the chapter shows."
import copy, math
from functools import partial

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils import prune
from resnotes.init import *

convs = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
functions = [lecun_normal, lecun_uniform, glorot_normal, glorot_uniform, he_normal, he_uniform,
             partial(depth_scaled_normal, depth=7), partial(depth_scaled_uniform, depth=7)]
strided = nn.Conv2d(40, 60, 3, stride=2)   # 9*40 inputs per output, 9*60/4 outputs per input


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


def test_rules_in_numbers():
    assert lecun_variance(50) == pytest.approx(.02)
    assert glorot_variance(32, 128) == pytest.approx(1/80)          # the arithmetic mean of the fans, not another
    assert he_variance(50) == pytest.approx(.04) and he_variance(50, .5) == pytest.approx(.032)
    assert depth_scaled_variance(50, 4) == pytest.approx(.005) and depth_scaled_variance(50, 4, 3.) == pytest.approx(.015)
    assert fans(strided) == (360, 135)


@pytest.mark.parametrize('rule, kwargs, variance', [
    ('lecun', {}, 1/360),
    ('glorot', {}, 2/(360 + 135)),
    ('he', {}, 2/360),
    ('he', dict(mode='fan_out'), 2/135),
    ('he', dict(negative_slope=.5), 2/(1.25*360)),
    ('he', dict(mode='fan_out', negative_slope=2.), 2/(5*135)),
    ('depth_scaled', dict(depth=7), 1/(7*360)),
    ('depth_scaled', dict(depth=7, c=3.), 3/(7*360)),
    ('depth_scaled', dict(depth=7, mode='fan_out'), 1/(7*135)),
    ('depth_scaled', dict(depth=7, c=.5, mode='fan_out'), .5/(7*135)),
])
@pytest.mark.parametrize('kind', ['normal', 'truncated', 'uniform'])
def test_every_argument_of_every_filler_counts(rule, kwargs, variance, kind):
    fill, stated = fillers[f"{rule}_{'uniform' if kind == 'uniform' else 'normal'}"]
    assert stated(strided, **kwargs) == pytest.approx(variance)
    cut = dict(truncated=True) if kind == 'truncated' else {}
    w = fill(strided, generator=torch.Generator().manual_seed(0), **kwargs, **cut).detach().double().flatten()
    square = w**2
    assert abs(square.mean() - variance) < 4*square.std()/len(w)**.5 < .05*variance
    largest = w.abs().max().item()/math.sqrt(variance)
    if kind == 'uniform': assert .999*3**.5 < largest <= 3**.5*(1 + 1e-6)
    if kind == 'truncated': assert 2.2 < largest < 2/.8796
    if kind == 'normal': assert largest > 3.5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', fillers)
def test_half_precision_is_the_rounded_single_precision(name, dtype):
    "A uniform bfloat16 of torch's has a mean that is 0.5 % of the deviation below zero"
    kwargs = dict(depth=7) if 'depth' in name else {}
    def filled(dtype): return fillers[name].fill(torch.empty(1000, 1000, dtype=dtype), generator=torch.Generator().manual_seed(0), **kwargs)
    w = filled(dtype)
    assert w.dtype == dtype and torch.equal(w, filled(torch.float32).to(dtype))
    w = w.double()
    assert abs(w.mean()) < 4*w.std()/w.numel()**.5


norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, momentum=None), nn.InstanceNorm2d(8, track_running_stats=True),
         nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.BatchNorm2d(8, track_running_stats=False)]


@pytest.mark.parametrize('norm', norms, ids=str)
def test_running_statistics_start_anew(norm):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), copy.deepcopy(norm))
    fresh = {n: b.clone() for n, b in model.named_buffers()}
    model(9*torch.randn(4, 3, 6, 6) + 5)
    init_layers(model, 'he_normal')
    assert all(torch.equal(b, fresh[n]) for n, b in model.named_buffers())
    for b in model.buffers(): b.fill_(-4)                                       # as `to_empty` may leave them
    init_layers(model, 'he_normal')
    assert all(torch.equal(b, fresh[n]) for n, b in model.named_buffers())


def test_running_statistics_of_a_norm_that_stays_stay():
    def seen(): return [b.clone() for b in model[1].buffers()]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    model(9*torch.randn(4, 3, 6, 6) + 5)
    before = seen()
    init_layers(model, 'he_normal', only=['0', '2'])
    assert all(map(torch.equal, before, seen()))
    def fussy(layer): return 1/(layer.out_channels - 2)
    with pytest.raises(ZeroDivisionError): init_layers(model, fussy)             # after the norm had its turn
    assert all(map(torch.equal, before, seen()))
    model[1].requires_grad_(False)
    init_layers(model, 'he_normal')
    assert all(map(torch.equal, before, seen()))


def test_a_model_made_without_memory():
    with torch.device('meta'): model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    init_layers(model.to_empty(device='cpu'), 'he_normal')
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(model.eval()(x), model[0](x)/(1 + 1e-5)**.5)


def test_names_lead_to_the_functions():
    assert list(fillers) == [f'{rule}_{kind}' for rule in ('lecun', 'glorot', 'he', 'depth_scaled') for kind in ('normal', 'uniform')]
    for name, one in fillers.items(): assert named_filler(name) is one and one.fill is globals()[name]
    for theirs, ours in (('xavier', 'glorot'), ('kaiming', 'he')):
        for kind in ('normal', 'uniform'): assert named_filler(f'{theirs}_{kind}') is fillers[f'{ours}_{kind}']


@pytest.mark.parametrize('name', ['he', 'kaiming', 'xavier_normal_', 'HE_NORMAL', '', None, 3, ['he_normal']])
def test_unknown_names_are_refused_with_the_allowed_ones(name):
    with pytest.raises(ValueError, match="fill must be one of 'lecun_normal', 'lecun_uniform', .*'depth_scaled_uniform', got "): named_filler(name)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(functions), st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 2**31))
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
@pytest.mark.parametrize('fill', functions)
def test_a_computed_weight_is_not_filled_in_vain(fill, normalise):
    layer = normalise(nn.Linear(4, 6))
    with pytest.raises(ValueError, match='tensor must be a layer that owns its weight, got a .*Linear that computes it'): fill(layer)
    assert fans(layer) == (4, 6)


computing = {'weight_norm': nn.utils.parametrizations.weight_norm, 'spectral_norm': nn.utils.parametrizations.spectral_norm, 'old spectral_norm': nn.utils.spectral_norm,
             'pruned': lambda layer: prune.random_unstructured(layer, 'weight', .5)}

@pytest.mark.parametrize('fill', [*functions, 'he_normal', nn.init.kaiming_normal_, lambda layer: nn.init.ones_(layer.weight)])
@pytest.mark.parametrize('normalise', computing.values(), ids=computing)
@pytest.mark.parametrize('inside', [True, False])
def test_a_computed_weight_and_what_it_is_made_of_stay(fill, normalise, inside):
    "Also its buffers: asking for it may change them"
    layer = normalise(nn.Linear(4, 6))
    model = nn.Sequential(nn.Linear(2, 4), layer) if inside else nn.Sequential(nn.Linear(2, 4), nn.Sequential(layer))
    nn.init.ones_(layer.bias)
    before = copy.deepcopy(layer.state_dict())
    changes = init_layers(model, fill)
    assert {n for n, v in layer.state_dict().items() if not torch.equal(v, before[n])} == {'bias'} and not layer.bias.any()
    parts = {n for n, _ in model.named_parameters() if n.startswith('1') and not n.endswith('bias')}
    assert {(c.parameter, c.why) for c in changes.left} == {(n, 'part of a parametrisation') for n in parts} and changes.others == 0
    alone = init_layers(layer, fill)
    assert {c.why for c in alone.left} == {'part of a parametrisation'} and [c.parameter for c in alone.changed] == ['bias']


def test_tied_weights_are_drawn_once_and_frozen_ones_stay():
    a, b = nn.Linear(64, 64), nn.Linear(64, 64)
    b.weight = a.weight
    b.bias.requires_grad_(False)
    before, seen = b.bias.clone(), []
    changes = init_layers(nn.Sequential(a, b), lambda layer: seen.append(layer) or he_normal(layer))
    assert seen == [a] and a.weight is b.weight and a.weight.var().item() == pytest.approx(2/64, rel=.2) and torch.equal(b.bias, before)
    assert [(c.parameter, c.what) for c in changes] == [('0.weight', '<lambda>'), ('0.bias', 'zero'), ('1.bias', 'left')] and changes.others == 0


def test_a_weight_tied_to_an_embedding_stays():
    model = nn.Sequential(nn.Embedding(9, 9), nn.Linear(9, 9, bias=False), nn.Linear(9, 2))
    model[1].weight = model[0].weight
    before = model[0].weight.clone()
    for fill in ('he_normal', nn.init.ones_, he_normal, lambda layer: nn.init.ones_(layer.weight)):
        changes = init_layers(model, fill)
        assert torch.equal(model[0].weight, before) and [c[:3] for c in changes.left] == [('0.weight', 'left', 'held by another kind of layer')]
        assert len(changes) == 3 and changes.others == 0


def test_one_row_for_each_parameter_by_its_name():
    body = nn.Linear(4, 4)
    model = nn.Sequential(body, nn.BatchNorm1d(4), body, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Embedding(3, 4), nn.GRU(4, 4))
    changes = init_layers(model, 'he_normal')
    names, rows = [n for n, _ in model.named_parameters()], [c.parameter for c in changes]
    assert len(rows) == len(set(rows)) and set(rows) <= set(names) and changes.others == len(names) - len(rows) == 1 + 4
    with Editor(model) as edit:
        for _ in range(2):
            edit.layers(lambda m: ('ones', 'again', nn.init.ones_))
            edit.done.clear()      # a second round
    report = edit.report('twice')
    assert [c.parameter for c in report] == rows and {c.what for c in report.changed} == {'ones, then ones', 'zero, then zero'} and report.others == 5
    assert report[0].before == changes[0].after


@pytest.mark.parametrize('only', ['1', ['1.weight', '1.bias'], lambda name: name.startswith('1'), {'1'}])
def test_only(only):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = copy.deepcopy(model.state_dict())
    changes = init_layers(model, 'he_normal', only=only)
    assert [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])] == ['1.weight', '1.bias']
    assert [c.parameter for c in changes.changed] == ['1.weight', '1.bias'] and {c.why for c in changes.left} == {'not among only'}


@pytest.mark.parametrize('break_off, fill, error, says', [
    (lambda m: None, 'depth_scaled_normal', TypeError, 'depth'),
    (lambda m: m.append(nn.Linear(0, 3)), he_normal, ValueError, 'must not be empty'),
    (lambda m: m.append(nn.Linear(0, 3)), nn.init.xavier_normal_, ValueError, 'must not be empty'),
    (lambda m: m.append(nn.Linear(3, 3, dtype=torch.cfloat)), 'he_normal', TypeError, 'floating-point'),
    (lambda m: m.append(nn.LazyLinear(3)), 'he_normal', ValueError, 'model has weights without a shape: run one batch through it first'),
    (lambda m: m.append(nn.LazyBatchNorm1d()), 'he_normal', ValueError, 'run one batch through it first'),
    (lambda m: None, lambda layer: (nn.init.ones_(layer.weight), nn.init.ones_(layer.bias), 1/(layer.out_features - 5)), ZeroDivisionError, 'division'),
    (lambda m: None, lambda layer: setattr(layer, 'weight', nn.Parameter(torch.ones(3, 3))), ValueError, 'fill must set the weight in place, <lambda> put another one there')])
def test_after_a_refusal_all_is_as_it_was(break_off, fill, error, says):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    nn.init.constant_(model[1].weight, .5)
    break_off(model)
    def state(): return [(n, id(p), None if nn.parameter.is_lazy(p) else p.detach().clone()) for n, p in model.named_parameters()]
    before = state()
    with pytest.raises(error, match=says): init_layers(model, fill)
    for (n, i, p), (m, j, q) in zip(before, state(), strict=True): assert (n, i) == (m, j) and (p is None or torch.equal(p, q))


def test_truncated_stays_within_its_cut():
    w = glorot_normal(torch.empty(400, 400), truncated=True)
    assert w.abs().max() <= 2/.8796*(1/400)**.5*(1+1e-3)


def test_init_layers_visits_everything():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, stride=2), nn.GroupNorm(2, 8),
                          nn.Flatten(), nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.InstanceNorm1d(8), nn.Linear(8, 2, bias=False))
    for p in model.parameters(): nn.init.constant_(p, 7.)
    seen = []
    changes = init_layers(model, lambda layer: seen.append(layer))
    assert seen == [m for m in model if isinstance(m, weight_layers)]
    assert [c.parameter for c in changes] == [name for name, _ in model.named_parameters()] and changes.others == 0
    for m in model:
        if getattr(m, 'bias', None) is not None: assert (m.bias == 0).all()
        if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)): assert (m.weight == 1).all()


def test_init_layers_passes_arguments_on():
    model = nn.Sequential(nn.Linear(64, 640), nn.ReLU(), nn.Linear(640, 64))
    init_layers(model, he_normal, mode='fan_out')
    assert model[0].weight.var().item() == pytest.approx(2/640, rel=.05)


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Embedding(5, 8), nn.Flatten(), nn.Linear(8, 2))


def filled(fill, **kwargs):
    "The weights of the two layers, drawn with a fixed seed"
    model = small()
    init_layers(model, fill, generator=torch.Generator().manual_seed(5), **kwargs)
    return [model[0].weight, model[5].weight]


def equal(a, b): return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('name, kwargs', [(n, dict(depth=3, c=2.) if n[0] == 'd' else {}) for n in fillers])
def test_a_name_a_function_and_a_loop_draw_the_same(name, kwargs):
    gen, model = torch.Generator().manual_seed(5), small()
    by_hand = [fillers[name].fill(m, generator=gen, **kwargs) for m in model if isinstance(m, weight_layers)]
    assert equal(by_hand, filled(name, **kwargs)) and equal(by_hand, filled(fillers[name].fill, **kwargs))
    assert equal(by_hand, filled(partial(fillers[name].fill, **kwargs)))


def test_other_spellings_of_one_rule_draw_the_same():
    assert equal(filled('xavier_uniform'), filled('glorot_uniform')) and equal(filled('kaiming_normal'), filled('he_normal'))
    assert all(torch.allclose(a, b) for a, b in zip(filled('lecun_normal'), filled('he_normal', negative_slope=1)))
    assert equal(filled(nn.init.kaiming_normal_), filled('he_normal'))                       # no strides, no groups
    assert equal(filled(partial(nn.init.kaiming_normal_, a=.5)), filled('he_normal', negative_slope=.5))


def test_functions_of_torch_see_the_weight():
    model = small()
    changes = init_layers(model, nn.init.constant_, val=.25)
    assert (model[0].weight == .25).all() and (model[0].bias == 0).all()
    assert changes[0][:3] == ('0.weight', 'constant_', 'weight layer') and changes[0].after == pytest.approx(.25)


def test_changes_say_what_became_of_every_parameter():
    model = small()
    before = {n: p.detach().double().square().mean().item()**.5 for n, p in model.named_parameters()}
    changes = init_layers(model, 'he_normal')
    assert isinstance(changes, Changes) and changes.title == 'he_normal' and changes.others == 1 and changes.left == []
    fates = {c.parameter: (c.what, c.why) for c in changes}
    weight, bias = ('he_normal', 'weight layer'), ('zero', 'bias')
    assert fates == {'0.weight': weight, '0.bias': bias, '1.weight': ('one', 'norm'), '1.bias': bias, '5.weight': weight, '5.bias': bias}
    named = dict(model.named_parameters())
    for c in changes:
        assert c.before == pytest.approx(before[c.parameter], rel=1e-6)
        assert c.after == pytest.approx(named[c.parameter].detach().double().square().mean().item()**.5, rel=1e-6)
    assert [c.parameter for c in changes.to_frame().itertuples()] == list(fates)


def test_one_fate_one_row():
    rows = [Change('a', 'he', 'weight', 1., 2.), Change('b', 'left', 'frozen', 3., 3.), Change('c', 'he', 'weight', .5, 2.)]
    changes = Changes(rows, 'a title', others=7)
    assert changes.changed == [rows[0], rows[2]] and changes.left == [rows[1]]
    header, shown = changes.table()
    assert header == ['number', 'parameters', 'what', 'why', 'rms before', 'after']
    assert shown == [[2, 'a … c', 'he', 'weight', '0.5 – 1.0', '2'], [1, 'b', 'left', 'frozen', '3.0', '3'],
                     [7, 'all others', 'left', 'the rule does not concern them', '', '']]
    assert repr(changes).startswith('a title\nnumber') and '<p>a title</p>' in changes._repr_html_()
    for part in (changes[:2], changes + rows[:1], changes.changed, changes.left, changes[:0]):
        assert type(part) is Changes and part.title == 'a title' and part.others == 0 and list(part.to_frame().columns) == list(Change._fields)
    assert changes.copy().others == 7 and changes[:2].changed == [rows[0]] and list(Changes().to_frame().columns) == list(Change._fields)
    assert Changes(rows).table()[1] == shown[:2] and 'all others' in repr(Changes(others=2))


@pytest.mark.parametrize('p, size', [(torch.tensor([3., -4.]), 12.5**.5), (torch.tensor([300.]).half(), 300.), (torch.empty(0), 0.)])
def test_root_mean_square(p, size): assert rms(p) == pytest.approx(size)


def test_no_numbers_have_no_size():
    assert math.isnan(rms(torch.empty(3, device='meta'))) and math.isnan(rms(nn.LazyLinear(3).weight))
    with torch.device('meta'): model = small()
    assert all(math.isnan(c.after) for c in init_layers(model, he_normal))


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
    (lambda: init_layers(nn.Linear(2, 2), 'he'), ValueError, "fill must be one of 'lecun_normal', .*got 'he'"),
    (lambda: init_layers(nn.Linear(2, 2), 3), TypeError, 'fill must be a name or a function, got 3'),
    (lambda: init_layers(nn.Linear(2, 2), fillers['he_normal']), TypeError, 'fill must be a name or a function, got Filler'),
    (lambda: init_layers(nn.Linear(2, 2), 'he_normal', only=nn.Linear(2, 2)), TypeError, 'only must be names of modules or parameters.*got the module Linear'),
    (lambda: init_layers(nn.Linear(2, 2), 'he_normal', only=[nn.Linear(2, 2)]), TypeError, 'only must hold names of modules or parameters, got .Linear'),
    (lambda: init_layers(nn.Linear(2, 2), 'he_normal', only=3), TypeError, 'only must be names.*got 3'),
    (lambda: init_layers(nn.Linear(2, 2), 'he_normal', only='head'), ValueError, "only must name modules or parameters of the model, got 'head'"),
    (lambda: init_layers(nn.LazyLinear(2), 'he_normal'), ValueError, 'model has weights without a shape: run one batch through it first'),
])
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says): call()

def test_an_editor_says_whether_it_changed_something():
    from resnotes.init import Editor
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    edit, before = Editor(layer, None), layer.bias.clone()
    assert edit.apply('weight', layer.weight, 'one', 'weight layer', nn.init.ones_) is True and (layer.weight == 1).all()
    assert edit.apply('bias', layer.bias, 'one', 'weight layer', nn.init.ones_) is False and torch.equal(layer.bias, before)
    assert edit.apply('more', None, 'one', 'weight layer', nn.init.ones_) is False

@pytest.mark.parametrize('only', ['1', '0'])
def test_a_tied_weight_may_be_named_by_each_of_its_names(only):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    changes = init_layers(model, nn.init.ones_, only=only)
    assert (model[0].weight == 1).all() and [c.parameter for c in changes.changed] == ['0.weight', f'{only}.bias']

def test_a_row_names_the_first_and_the_last_of_many():
    assert Changes([Change(name, 'one', 'norm', 1., 1.) for name in 'abcd']).table()[1] == [[4, 'a … d', 'one', 'norm', '1', '1']]

def test_after_an_error_running_statistics_are_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model(9*torch.randn(4, 3, 6, 6) + 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), Editor(model) as edit:
        edit.layers(lambda m: ('ones', 'again', nn.init.ones_))
        edit.forget()
        assert not model[1].running_mean.any() and (model[0].weight == 1).all()
        raise KeyboardInterrupt
    for name, v in model.state_dict().items(): assert torch.equal(v, before[name]), name

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('fill', [he_normal, he_uniform])   # PyTorch's truncated normal draws again in room of its own
def test_single_precision_is_drawn_in_place(fill, dtype, monkeypatch):
    monkeypatch.setattr(torch, 'empty_like', lambda *args, **kwargs: pytest.fail('room was taken for a copy'))
    w = torch.zeros(3, 3, dtype=dtype)
    assert fill(w) is w and w.all()

def test_a_shared_bias_is_set_and_a_shared_weight_is_not_drawn():
    model = nn.Sequential(nn.Linear(3, 3), nn.Module())
    nn.init.ones_(model[0].bias)
    model[1].weight, model[1].bias = model[0].weight, model[0].bias   # of a layer of another kind
    changes = init_layers(model, nn.init.ones_)
    assert [c[:3] for c in changes] == [('0.weight', 'left', 'held by another kind of layer'), ('0.bias', 'zero', 'bias')] and not model[0].bias.any()
    edit = Editor(model)
    edit.leave('0.bias', model[0].bias, 'for a reason')
    assert edit.report('')[0].why == 'for a reason'

@pytest.mark.parametrize('parts', [('a.weight_g', 'a.weight_v'), ('a.weight_orig',), ('a.parametrizations.weight.original0', 'a.parametrizations.weight.original1')])
def test_parts_are_known_by_the_name_of_what_they_make(parts):
    model = nn.Sequential(nn.Linear(2, 2))
    for part in parts:
        module = model
        *path, last = part.split('.')
        for name in path: module = getattr(module, name, None) or module.add_module(name, nn.Module()) or getattr(module, name)
        module.register_parameter(last, nn.Parameter(torch.ones(2)))
    edit, named = Editor(model), dict(model.named_parameters())
    assert list(edit.made_of) == ['a.weight'] and list(map(id, edit.made_of['a.weight'])) == [id(named[part]) for part in parts]
