"Every ailment is named, in several seeds; every healthy twin is passed over; and each remedy that can be run cures"
import math, re
from types import SimpleNamespace as Made

import pytest
import torch
import torch.nn.functional as F
from fastai.optimizer import SGD
from torch import nn

from resnotes import causes as judges, propagation
from resnotes.ailments import ailments, make_case
from resnotes.causes import Finding, causes, limits
from resnotes.evidence import gather
from resnotes.report import audit
from resnotes.starts import initialize
from nets import snapshot, same
from test_limits import Infinite, data, loss, signs


def found(case): return audit(case.model, case.x, case.y, loss=case.loss, optimizer=case.optimizer).findings

slow = {'tower_without_norms', 'norm_behind_every_addition', 'halved_at_every_addition'}
cases = [(name, seed) for name in ailments for seed in range(3 if name in slow else 8)]

@pytest.mark.parametrize('name, seed', cases)
def test_the_sick_is_named_and_its_twin_is_not(name, seed):
    cause, _ = ailments[name]
    assert cause in [f.cause for f in found(make_case(name, True, seed))][:2]
    assert found(make_case(name, False, seed)) == []

def test_every_cause_has_an_ailment():
    without = set(causes) - {cause for cause, _ in ailments.values()}
    assert without <= {'targets_not_finite', 'gradient_grows'} and len(causes) >= 35 and len(ailments) >= 40

def test_nan_in_the_targets():
    assert found(make_case('prices_as_targets', False)._replace(y=torch.full((64, 1), math.nan)))[0].cause == 'targets_not_finite'

@pytest.mark.parametrize('name', ailments)
def test_a_finding_says_what_where_why_and_one_remedy(name):
    for f in found(make_case(name)):
        assert f.seen and f.where and f.why and f.remedy and f.cause in causes and '\n' not in f
        assert re.search(r'\d', f) or f.cause in ('masked_row', 'signal_not_finite', 'graph_is_cut', 'changed_in_place', 'probabilities_as_logits',
                                                 'weight_not_finite', 'targets_ignored', 'relu_on_logits', 'input_constant', 'one_output', 'norm_of_one',
                                                 'norm_of_few', 'layers_are_twins', 'logits_as_probabilities', 'loss_not_finite', 'gradient_not_finite')
        assert ('draws weights anew' in f) == f.draws

cured_by_call = ['tower_without_norms', 'norm_behind_every_addition', 'default_weights_in_depth', 'normal_weights', 'closed_units', 'saturated_tanh',
                 'constant_weights', 'loud_head', 'tied_embedding', 'rare_pixels', 'relu_behind_a_zero']

@pytest.mark.parametrize('name', cured_by_call)
def test_the_remedy_of_a_start_can_be_pasted(name):
    "Run until nothing is said: several layers may want the same line"
    model, x, y, loss, _ = case = make_case(name, True, 1)
    for _ in range(3):
        said = found(case)
        if not said: break
        with torch.no_grad(): exec(said[0].remedy, dict(model=model, x=x, y=y, nn=nn, initialize=initialize))
    assert found(case) == []

def test_an_audit_of_the_sick_leaves_everything():
    for name in ('root_at_zero', 'all_keys_masked', 'norms_left_in_evaluation', 'sum_in_place', 'relu_behind_a_zero', 'softmax_twice'):
        case = make_case(name)
        before = snapshot(case.model)
        found(case)
        assert same(before, snapshot(case.model)), name

def test_a_finding_is_text():
    import copy, json
    f = Finding('seen', 'where', 'why', 'remedy', True)
    assert f == 'seen (where): why; try remedy [draws weights anew: not for a pretrained net]'
    assert json.loads(json.dumps([f])) == [f] and copy.deepcopy(f) == f and copy.deepcopy(f).where == 'where'

def test_limits_are_used(monkeypatch):
    case = make_case('pixels_to_255')
    assert found(case)
    monkeypatch.setitem(limits, 'input', 1e3)
    assert found(case) == []

class Mixing(nn.Module):
    "A branch that ends in a norm; behind the sum a norm, and a weight layer before that or none"
    def __init__(self, layers, n=32):
        super().__init__()
        self.a, self.ended, self.between = nn.Linear(n, n), nn.BatchNorm1d(n), nn.Sequential(*[nn.Linear(n, n), nn.ReLU()]*layers, nn.BatchNorm1d(n))
        nn.init.kaiming_normal_(self.a.weight)
    def forward(self, x): return self.between(x + self.ended(self.a(x).relu()))

@pytest.mark.parametrize('layers', [0, 1])
@pytest.mark.parametrize('seed', range(3))
def test_the_branches_are_blamed_for_forgetting_only_where_smaller_ones_help(layers, seed):
    "As in ConvMixer, whose main path has weight layers of its own: there the remedy would change nothing"
    torch.manual_seed(seed)
    model, x = nn.Sequential(*[Mixing(layers) for _ in range(36)], nn.Linear(32, 4)), torch.randn(64, 32)
    before = audit(model, x)
    assert before.noise > limits['sensitivity'] and [f.cause for f in before.findings] == ['input_is_forgotten']*(1 - layers)
    assert any('sensitivity' in note for note in before.notes)
    initialize(model, x, rule='harmonic')
    assert (audit(model, x, noise=True).noise < limits['sensitivity']) == (not layers)

def few_before_the_head(norms):
    "Convolutions with norms over many values, and a norm before the head over one value per image"
    pairs = [[nn.Conv2d(1 if k == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()] for k in range(norms)]
    return nn.Sequential(*[m for pair in pairs for m in pair], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 4))

@pytest.mark.parametrize('norms, batch, said', [(2, 2, True), (2, 3, True), (2, 4, False), (2, 7, False), (1, 4, True), (1, 7, True), (1, 8, False)])
def test_a_lone_norm_of_few_is_complained_of_below_four_values(norms, batch, said):
    "Where half of the norms or more are concerned, below eight; else up to seven values are a note"
    torch.manual_seed(0)
    report = audit(few_before_the_head(norms), torch.randn(batch, 1, 8, 8), torch.arange(batch)%4, loss=F.cross_entropy)
    assert [f.cause for f in report.findings if f.cause == 'norm_of_few'] == ['norm_of_few']*said
    assert any(f'average {batch} values' in note for note in report.notes) == (batch < 8 and not said)

# on evidence that is made up, at the edges

@pytest.mark.parametrize('kind, running, said', [('batch_norm', False, True), ('batch_norm', True, False), ('group_norm', False, False)])
def test_few_values_matter_to_batch_norms_that_average_them(kind, running, said):
    ev = Made(error=None, norms=[Made(kind=kind, running=running, values=2, module='m')])
    assert (judges.norm_of_few(ev) is not None) == said

def test_a_limit_itself_is_no_complaint():
    assert judges.input_scale(data(limits['input']*signs)) is None
    assert judges.near_the_largest_number(Made(layers=[Made(module='m', peak=65504/8)])) is None
    assert judges.target_scale(loss('mse_loss', torch.ones(4), limits['targets']*torch.ones(4))) is None

@pytest.mark.parametrize('depth', [3, 4])
def test_three_levels_of_objects_are_looked_into(depth):
    def held(t):
        for _ in range(depth): t = Made(held=t)
        return t
    bad, good = torch.tensor([[1., math.nan], [2., 3.]]), torch.ones(2, 2)
    assert (judges.input_not_finite(Made(args=(held(bad),), kwargs={})) is not None) == (depth == 3)
    assert (judges.input_constant(Made(args=(held(good),), kwargs={}, first=good)) is not None) == (depth == 3)
    assert (judges.loss_not_finite(Made(error=None, value=math.nan, out=held(bad))) is None) == (depth == 3)

def columns(n, factor=1e4): return torch.arange(1, n + 1.)[:, None]*torch.tensor([.5, .5*factor])

@pytest.mark.parametrize('n, said', [(7, False), (8, True)])
def test_columns_are_compared_from_eight_examples_on(n, said):
    assert (judges.column_scales(data(columns(n))) is not None) == said

def test_columns_are_compared_in_tables_and_images_that_no_norm_reads():
    x = columns(16)
    assert judges.column_scales(data(x)).startswith('columns of the input differ 1e+04-fold')
    assert judges.column_scales(data(x[:, :, None, None].expand(-1, -1, 3, 3))) is not None
    assert judges.column_scales(data(x[:, :, None].expand(-1, -1, 3))) is None and judges.column_scales(data(x.long())) is None
    normed = data(x)
    normed.normed = True
    assert judges.column_scales(normed) is None

def test_a_column_that_is_constant_is_an_indicator_and_a_pixel_is_none():
    x = torch.cat([columns(16)[:, 1:], torch.ones(16, 1)], 1)
    assert judges.column_scales(data(x)) is None and judges.column_scales(data(x[..., None, None])) is not None
    x[:, 1] = 0
    for made in (x, x[..., None, None]): assert judges.column_scales(data(made)) is None   # one column is left, and nothing to compare it with

@pytest.mark.parametrize('training, running, factor, said', [(True, True, 9.7, False), (True, True, 10.3, True), (False, True, 99, False), (True, False, 99, False)])
def test_running_statistics_may_be_off_tenfold(training, running, factor, said):
    f = judges.stale_statistics(Made(model=Made(training=training), norms=[Made(running=running, gap=math.log(factor), module='m')]))
    assert (f is not None) == said and (not said or 'that are 10-fold off' in f)

@pytest.mark.parametrize('factor, said', [(.97, False), (1.03, True)])
def test_targets_are_judged_beside_an_output_of_unit_scale_at_least(factor, said):
    for own in (0., 1.): assert (judges.target_scale(loss('mse_loss', own*torch.ones(4), factor*limits['targets']*torch.ones(4))) is not None) == said

@pytest.mark.parametrize('factor, said', [(.97, False), (1.03, True)])
def test_a_binary_loss_is_judged_beside_a_guess_of_one_half(factor, said):
    value = math.log(2) + factor*limits['loss']   # = log(1 + exp(-out)) where the target is 1
    f = judges.far_from_guessing(loss('binary_cross_entropy_with_logits', [-math.log(math.expm1(value))]*4, [1.]*4))
    assert (f is not None) == said and (not said or 'and 0.693 for guessing' in f)

@pytest.mark.parametrize('ignored', [2, -1])
def test_the_first_loss_is_taken_over_the_targets_that_are_classes(ignored):
    out = torch.tensor([[0., 20.], [0., 0.], [0., 10.]])   # log(1 + e^20) and log(1 + e^10) where the target is 0
    f = judges.far_from_guessing(loss('cross_entropy', out, [0, ignored, 0]))
    assert 'the loss is 15, and 0.693 for guessing' in f

def test_one_hot_rows_are_probabilities_too():
    assert 'add up to one' in judges.probabilities_as_logits(loss('cross_entropy', torch.eye(2), [0, 1]))
    assert judges.probabilities_as_logits(loss('cross_entropy', torch.tensor([[-1., 2.], [2., -1.]]), [0, 1])) is None

def test_one_output_has_no_other_class():
    ev = loss('cross_entropy', torch.zeros(8, 1), torch.zeros(8).long())
    assert judges.one_class(ev) is None and judges.one_output(ev) is not None
    assert judges.one_class(loss('cross_entropy', torch.zeros(8, 2), torch.zeros(8).long())) is not None

def test_a_rare_class_is_told_of_where_its_loss_is_binary_and_not_weighted():
    y = torch.arange(1000).lt(5)*1.
    assert judges.rare_class(loss('binary_cross_entropy_with_logits', torch.zeros(1000), y)) is not None
    assert judges.rare_class(loss('binary_cross_entropy_with_logits', torch.zeros(1000), y, weighted=True)) is None
    assert judges.rare_class(loss('mse_loss', torch.zeros(1000), y)) is None

def test_scores_of_one_example_have_no_classes_in_dimension_one():
    for ev in (ev := loss('cross_entropy', [0., 0., 0.], 5), Made(**vars(ev) | dict(error=('forward', 'Target 5 is out of bounds.')))): assert judges.targets_out_of_range(ev) is None
    ev = loss('cross_entropy', [[0., 0., 0.]], [5])
    assert judges.targets_out_of_range(ev) is None   # the loss took them, so that it passes them over
    ev.error = 'forward', 'Target 5 is out of bounds.'
    assert 'go up to 5' in judges.targets_out_of_range(ev)

@pytest.mark.parametrize('passed_over', [255, -1, 7])
def test_targets_that_the_loss_passes_over_are_no_classes(passed_over):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    x, y = torch.randn(4, 3, 16, 16), torch.randint(0, 5, (4, 16, 16))
    y[:,:2] = passed_over
    assert audit(net, x, y, loss=nn.CrossEntropyLoss(ignore_index=passed_over)).findings == []
    if passed_over > 4: assert [f.cause for f in audit(net, x, y, loss=F.cross_entropy).findings] == ['targets_out_of_range']

class Square(nn.Module):
    "Changes its input, and has a root at zero"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x): return self.b((self.a(x.mul_(2))*0).abs().sqrt())

def test_the_search_for_a_gradient_without_end_leaves_gradients_and_input():
    torch.manual_seed(0)
    net, x = Square(), torch.randn(8, 4)
    for p in net.parameters(): p.grad = torch.ones_like(p)
    kept = x.clone()
    assert [f.cause for f in audit(net, x, torch.randn(8, 4), loss=F.mse_loss).findings] == ['gradient_not_finite']
    assert torch.equal(x, kept) and all((p.grad == 1).all() for p in net.parameters())

def test_pixels_in_bytes_are_an_input():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        def forward(self, x): return self.layers(x.float())
    torch.manual_seed(0)
    assert 'input_scale' in [f.cause for f in audit(Cast(), torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8), torch.arange(32)%10, loss=F.cross_entropy).findings]

def test_the_last_layer_is_the_head_of_a_rare_class():
    ev = loss('binary_cross_entropy_with_logits', torch.zeros(1000), torch.arange(1000).lt(5)*1.)
    ev.layers = [Made(module='first'), *ev.layers]
    assert judges.rare_class(ev).where == 'head'

def test_a_list_of_layers_is_named_and_no_list_of_torch_s_own():
    f, = found(make_case('layers_in_a_list'))
    assert f.cause == 'unregistered' and f.where == 'layers'

class Doubled(nn.Module):
    "A residual block, and what the signal is multiplied by behind it"
    def __init__(self, factor): super().__init__(); self.a, self.b, self.factor = nn.Linear(16, 16), nn.Linear(16, 16), factor
    def forward(self, x): return self.factor*(x + self.b(self.a(x).relu()))

@pytest.mark.parametrize('residual, rule', [(True, 'depth_scaled_normal'), (False, 'he_normal')])
def test_a_signal_that_overflows_is_started_anew_by_the_rule_of_its_network(residual, rule):
    if residual: model, x = nn.Sequential(*[Doubled(1e20) for _ in range(3)], nn.Linear(16, 4)), torch.randn(64, 16)
    else: model, x, *_ = make_case('exponent_overflows')
    f = judges.signal_not_finite(gather(model, x, torch.arange(64)%4, loss=F.cross_entropy))
    assert f.draws and f.remedy.endswith(f"rule='{rule}')")

@pytest.mark.parametrize('n', [1, 2])
def test_two_examples_are_enough_to_compete(n):
    out = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    for kind in ('nll_loss', 'cross_entropy'):
        f = judges.wrong_dimension(loss(kind, out, [0]*n))
        assert (f is not None) == (n == 2) and (n == 1 or 'adds up to one over dimension 0' in f)
    assert judges.wrong_dimension(loss('mse_loss', out, torch.zeros(n, 3))) is None

@pytest.mark.parametrize('out, dimension', [([[1., 0., 0.], [0., 1., 1.]], 0), ([[2., -1., 0.], [-1., 2., 1.]], None), ([[.5, .5], [.5, .5]], None), ([[.4, .5], [.5, .5]], None),
                                            ([[[.5, .5], [.1, .9]], [[.2, .8], [0., 1.]]], 2), ([[[.5, .5], [.5, .5]], [[.2, .8], [.8, .2]]], None)])
def test_shares_are_not_negative_and_add_up_over_another_dimension_than_the_classes(out, dimension):
    f = judges.wrong_dimension(loss('cross_entropy', out, torch.zeros(2).long()))
    assert (f is None) == (dimension is None) and (f is None or f'over dimension {dimension}' in f)

def test_logarithms_add_up_to_one_within_a_twentieth():
    def said(value, *shape): return judges.logits_as_probabilities(loss('nll_loss', torch.full(shape, value), torch.zeros(len(shape)).long())) is not None
    assert not said(.05, 2, 1) and said(.051, 2, 1)                      # over the classes
    assert said(.05, 1, 3, 5) and not said(.049, 1, 3, 5)                # else over the batch, which has a finding of its own
    assert judges.logits_as_probabilities(loss('nll_loss', [1., 2., 3.], 1)) is None   # one example without a batch

def test_a_weight_whose_square_overflows_is_no_infinite_weight():
    def judged(w, moment): return judges.weight_not_finite(Made(parameters=dict(w=torch.tensor([w])), weights=dict(w=moment)))
    assert judged(3e38, math.inf) is None and judged(1., 1.) is None and judged(math.inf, math.inf).where == 'w'

@pytest.mark.parametrize('modules, where', [(('block', 'stage', ''), 'block, net.py:3'), (('',), 'net.py:3')])
def test_gradients_that_are_off_are_placed_in_the_innermost_module(modules, where):
    ev = Made(gradients=dict(w=None, v=1.), frozen=[], used={'w', 'v'}, weights=dict(w=1., v=1.), facts=Made(lost=('net.py:3', modules)))
    f = judges.graph_is_cut(ev)
    assert f.where == where and f.seen == 'gradients are off while 1 parameters are used'
    ev.facts.lost = None
    assert judges.graph_is_cut(ev).seen == '1 of 2 parameters are used and get no gradient' and judges.graph_is_cut(ev).where == 'w'
    ev.gradients['v'] = None
    assert judges.graph_is_cut(ev).seen == 'the loss depends on no parameter'

@pytest.mark.parametrize('y, said', [([0., 1.], False), ([0., 1.01], True), ([-.01, 1.], True)])
def test_targets_of_a_binary_loss_reach_from_zero_to_one(y, said):
    for kind in ('binary_cross_entropy', 'binary_cross_entropy_with_logits'): assert (judges.targets_out_of_range(loss(kind, [.5, .5], y)) is not None) == said
    assert judges.targets_out_of_range(loss('mse_loss', [.5, .5], y)) is None

def test_one_number_without_a_batch_is_no_single_output():
    assert judges.one_output(loss('cross_entropy', [0.], 0)) is None and judges.one_output(loss('cross_entropy', [[0.]], [0])) is not None

@pytest.mark.parametrize('make', [lambda held: torch.optim.SGD(held, .1), lambda held: SGD(held, .1), lambda held: Made(all_params=lambda: [(p, None, {}, {}) for p in held])])
def test_an_optimizer_holds_parameters_in_groups_or_in_tuples(make):
    "As those of torch and of fastai do; of what is left out the first is named"
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    names = [name for name, _ in model.named_parameters()]
    def judged(*held, frozen=()): return judges.optimizer_misses(Made(model=model, optimizer=make([p for part in held for p in part.parameters()]), frozen=frozen, used=set(names), weights=names))
    assert judged(*model) is None and judged(model[0], frozen=names[2:]) is None
    assert judged(model[0]).where == '1.weight' and judged(model[0]).seen == 'the optimizer leaves out 2 of 4 parameters'

def test_a_signal_is_lost_in_the_innermost_module():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), Infinite(lambda t: 0*t)))
    f = judges.signal_not_finite(gather(model, torch.randn(8, 4), torch.randn(8, 4), loss=F.mse_loss))
    assert f.where.startswith('0.1, ') and 'test_causes.py' in f.where

def test_a_vector_is_no_batch_of_examples():
    for x, said in ((torch.full((8,), 99.), False), (torch.full((8, 1), 99.), True), (torch.full((1, 8), 99.), False), (torch.full((8, 1), 99), False)):
        assert (judges.input_scale(data(x)) is not None) == (judges.input_constant(data(x)) is not None) == said

class Functional(nn.Module):
    "Scores by the product with the embedding's own weight, or by a layer of the same size"
    def __init__(self, same):
        super().__init__()
        self.embed, self.head, self.same = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False), same
        with torch.no_grad(): self.head.weight.mul_(30)
    def forward(self, t): return F.linear(self.embed(t), self.embed.weight if self.same else self.head.weight)

@pytest.mark.parametrize('model, x, said', [(Functional(True), torch.arange(50), True), (Functional(False), torch.arange(50), False),
                                            (nn.Sequential(nn.Linear(50, 50)), 30*torch.eye(50), False)], ids=['the same weight', 'another', 'a single layer'])
def test_only_an_embedding_is_called_one(model, x, said):
    torch.manual_seed(0)
    for p in model.parameters(): nn.init.normal_(p, std=3)
    f = judges.far_from_guessing(gather(model, x, torch.arange(50).roll(1), loss=F.cross_entropy))
    assert ('the head is the embedding' in f) == f.draws == said

@pytest.mark.parametrize('factor, said', [(.97, False), (1.03, True)])
def test_signal_and_gradient_are_judged_at_their_limits(monkeypatch, factor, said):
    layers = [Made(kind='linear', main=main, module='m') for main in (1., factor*1e3, 1.)]
    assert (propagation.layers_amplify(Made(layers=layers, rows=[])) is not None) == said
    monkeypatch.setattr(propagation, '_energies', lambda ev: (1., factor*1e4))
    assert (propagation.gradient_fades(Made(top=[Made(module='m')])) is not None) == said

@pytest.mark.parametrize('values, said', [((7, 9), True), ((7, 9, 9), False), ((7, 7, 9, 9), True), ((7, 7, 9, 9, 9), False), ((7, 5, 6, 9, 9), True), ((3, 9, 9, 9), True), ((8, 8), False)])
def test_half_of_the_norms_make_a_complaint_below_eight_values(values, said):
    f = judges.norm_of_few(Made(error=None, norms=[Made(kind='batch_norm', running=False, values=v, module='m') for v in values]))
    assert (f is not None) == said and (not said or f'averages {min(values)} values' in f)

class Product(nn.Module):
    "Multiplies by a parameter of its own"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 20)*300)
    def forward(self, x): return F.linear(x, self.w)

@pytest.mark.parametrize('make', [lambda: nn.Linear(20, 5, bias=False), Product, lambda: nn.Sequential(Product())])
def test_a_remedy_names_the_weight_as_the_model_does(make):
    "A layer that is the whole model, and a parameter without a layer; the line mends what was found"
    torch.manual_seed(0)
    model, x, y = make(), torch.randn(32, 20), torch.randint(0, 5, (32,))
    with torch.no_grad(): next(model.parameters()).copy_(300*torch.randn(5, 20))
    def judged(): return judges.far_from_guessing(gather(model, x, y, loss=F.cross_entropy))
    for _ in range(3):   # each makes the outputs a tenth
        assert 'the outputs are too large' in (f := judged())
        exec(f.remedy, dict(model=model))
        if not judged(): return
    pytest.fail(f)

def test_what_has_no_bias_is_not_told_to_fill_it():
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU())
    nn.init.constant_(model[0].weight, -1.)
    f = propagation.units_are_dead(gather(model, torch.rand(16, 4), torch.zeros(16, 8), loss=F.mse_loss))
    assert f.startswith('100% of the features are closed') and f.remedy == ''
