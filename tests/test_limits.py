"Each limit of a complaint, from both sides, on evidence that is made up: 3 % below it nothing is said, 3 % above it something is"
from collections import Counter
from types import SimpleNamespace as Made

import pytest
import torch
from torch import nn

from resnotes import causes, propagation
from resnotes.ailments import make_case
from resnotes.evidence import Evidence
from resnotes.report import audit


def fading(share):
    "The last layer reads a one and a signal of this share beside it"
    last = 1 + share**.5*torch.tensor([[1.], [-1.]]).double()
    return Made(last=last, layers=[None, None, Made(module='last')], facts=Made(kinds=Counter()))

class Forgetful(Made): top, norms_on_top, weighed = Evidence.top, Evidence.norms_on_top, Evidence.weighed

def forgetful(noise, n=10): return Forgetful(noise=noise, rows=[Made(norm=True, module='m')]*n, branches=[Made(inside=None)]*n)

def sharp(top): return Made(attention=[('m', top)])

def data(x): return Made(args=(x,), kwargs={}, first=x, normed=False, layers=[])

signs = torch.tensor([[1.], [-1.]]).repeat(8, 2)

@pytest.mark.parametrize('judge, make, limit', [
    (propagation.signal_fades, lambda factor: fading(1e-5/factor), 1e-5), (propagation.input_is_forgotten, lambda factor: forgetful(40*factor), 40),
    (propagation.attention_is_sharp, lambda factor: sharp(.95*factor), .95), (causes.input_scale, lambda factor: data(20*factor*signs), 20),
    (causes.input_scale, lambda factor: data(.01/factor*signs), .01), (causes.column_scales, lambda factor: data(signs*torch.tensor([1., 1e3*factor])), 1e3)])
def test_a_complaint_begins_at_its_limit(judge, make, limit):
    assert judge(make(.97)) is None and judge(make(1.03)) is not None

def test_few_branches_forget_nothing():
    assert propagation.input_is_forgotten(forgetful(99, 9)) is None and propagation.input_is_forgotten(forgetful(99, 10)) is not None

# causes that read the call of a loss, at the edges of what they complain about

def loss(kind, out, target, made_by='', weighted=False):
    out, target = torch.as_tensor(out), torch.as_tensor(target)
    call = Made(kind=kind, out=out, target=target, made_by=made_by, weighted=weighted)
    return Made(losses=[call], out=out, targets=(target,), layers=[Made(module='body', peak=1.), Made(module='head', peak=1.)], error=None, loss=nn.MSELoss(),
                model=nn.ModuleDict(dict(body=nn.Linear(2, 2), head=nn.Linear(2, 2))))

@pytest.mark.parametrize('made, inside, outside', [('Sigmoid', [0., .5, 1.], [-.1, 1.1]), ('Softmax', [0., .5, 1.], [-.1, 1.1]),
                                                   ('Tanh', [-1., 0., 1.], [-1.1, 1.1]), ('Relu', [0., 1e9], [-.1]), ('', [-1e9, 1e9], [])])
def test_targets_are_in_reach_up_to_the_ends_of_an_activation(made, inside, outside):
    assert causes.out_of_reach(loss('mse_loss', inside, inside, made)) is None
    for y in outside: assert made.lower() in causes.out_of_reach(loss('mse_loss', [0.], [y], made))

def test_a_few_targets_out_of_reach_are_noise():
    def share(n): return causes.out_of_reach(loss('mse_loss', torch.zeros(100), torch.arange(100.).lt(n)*2., 'Sigmoid'))
    assert share(2) is None and share(3).startswith('3% of the targets lie outside what a sigmoid gives')

def test_probabilities_may_be_zero_and_one():
    assert causes.logits_as_probabilities(loss('binary_cross_entropy', [0., 1.], [0., 1.])) is None
    for wrong in (-.01, 1.01): assert causes.logits_as_probabilities(loss('binary_cross_entropy', [.5, wrong], [0., 1.])) is not None
    assert causes.targets_out_of_range(loss('binary_cross_entropy', [.5, .5], [0., 1.])) is None

def test_a_softmax_over_another_dimension_is_named_once():
    "By `wrong_dimension`, where the output has more than two; a vector per example has no other to mistake"
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    assert causes.logits_as_probabilities(loss('nll_loss', logits.log_softmax(1), torch.zeros(4, 5).long())) is None
    assert causes.logits_as_probabilities(loss('nll_loss', logits.log_softmax(0), torch.zeros(4, 5).long())) is None
    assert causes.logits_as_probabilities(loss('nll_loss', logits[..., 0].log_softmax(0), torch.zeros(4).long())) is not None

def test_two_classes_are_enough_for_a_softmax_twice():
    assert 'add up to one' in causes.probabilities_as_logits(loss('cross_entropy', [[.25, .75], [.5, .5]], [0, 1]))
    assert causes.probabilities_as_logits(loss('cross_entropy', [[1.], [1.]], [0, 0])) is None

@pytest.mark.parametrize('n, said', [(7, False), (8, True)])
def test_from_eight_targets_on_one_class_is_no_chance(n, said):
    assert (causes.one_class(loss('cross_entropy', torch.zeros(n, 3), torch.full((n,), 2))) is not None) == said

@pytest.mark.parametrize('share, said', [(.005, True), (.03, False), (.97, False), (.995, True), (0, False), (1, False)])
def test_a_class_is_rare_on_either_side(share, said):
    "The output says one half or, where the share is high, hardly ever"
    y = torch.arange(1000).lt(1000*share)*1.
    f = causes.rare_class(loss('binary_cross_entropy_with_logits', torch.zeros(1000), y))
    assert (f is not None) == said and (not said or f.where == 'head' and f"'head').bias, {torch.tensor(share).logit():.2f})" in f.remedy)

def test_a_number_as_output_has_no_partners():
    ev = loss('mse_loss', 3., [1., 2.])
    assert causes.targets_without_partners(ev) is None
    assert causes.targets_without_partners(loss('mse_loss', [[1.], [2.]], [1., 2.])) is not None

@pytest.mark.parametrize('factor, said', [(.97, False), (1.03, True)])
def test_float16_is_near_its_end_from_an_eighth_on(factor, said):
    ev = Made(layers=[Made(module='m', peak=1.), Made(module='n', peak=factor*65504/8)])
    assert (causes.near_the_largest_number(ev) is not None) == said

def test_two_examples_are_enough_to_be_the_same():
    for n in (1, 2): assert (causes.input_constant(data(torch.ones(n, 3))) is not None) == (n == 2)

class Infinite(nn.Module):
    "Minus infinity on purpose, and then a call that makes NaN of it"
    def __init__(self, spoil): super().__init__(); self.layer, self.spoil = nn.Linear(4, 4), spoil
    def forward(self, x): return self.spoil(self.layer(x)[:, None].masked_fill(torch.tensor(True), -torch.inf)).mean(1)

@pytest.mark.parametrize('spoil, cause', [(lambda t: t.softmax(-1), 'masked_row'), (lambda t: 0*t, 'signal_not_finite')])
def test_only_a_softmax_has_masked_rows(spoil, cause):
    found = audit(Infinite(spoil), torch.randn(8, 4), torch.randn(8, 4), loss=nn.functional.mse_loss).findings
    assert cause in [f.cause for f in found] and {'masked_row', 'signal_not_finite'} - {cause} - {f.cause for f in found}

def test_the_operation_whose_gradient_is_not_finite_has_a_name():
    case = make_case('root_at_zero')
    assert audit(case.model, case.x, case.y, loss=case.loss).findings[0].startswith('the gradient is not finite at Pow (')

def test_one_class_is_told_of_classes_alone():
    assert causes.one_class(loss('mse_loss', torch.zeros(8, 3), torch.zeros(8))) is None
    assert causes.one_class(loss('cross_entropy', torch.zeros(8, 3, 2), torch.zeros(8, 2).long())) is None
    assert causes.one_class(loss('cross_entropy', torch.zeros(8, 3), torch.zeros(8))) is None

def test_a_loss_of_ones_own_is_judged_where_output_and_target_fit():
    def own(target): return Made(losses=[], out=torch.zeros(8, 3), targets=(target,))
    assert causes.target_scale(own(100*torch.ones(8, 3))) is not None
    assert causes.target_scale(own(100*torch.ones(8))) is None and causes.target_scale(own(100*torch.ones(8, 3).long())) is None

@pytest.mark.parametrize('name, tied', [('loud_head', False), ('tied_embedding', True)])
def test_a_head_is_told_from_one_that_is_the_embedding(name, tied):
    case = make_case(name)
    f, = (f for f in audit(case.model, case.x, case.y, loss=case.loss).findings if f.cause == 'far_from_guessing')
    assert ('the head is the embedding' in f) == tied == f.draws

@pytest.mark.parametrize('weighed, said', [(0, True), (4, True), (5, False), (10, False)])
def test_a_main_path_with_weight_layers_forgets_by_itself(weighed, said):
    made = forgetful(99)
    made.weighed = weighed
    assert (propagation.input_is_forgotten(made) is not None) == said
