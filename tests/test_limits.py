"Each limit of a complaint, from both sides, on evidence that is made up: 3 % below it nothing is said, 3 % above it something is"
from collections import Counter
from types import SimpleNamespace as Made

import pytest
import torch

from resnotes import causes, propagation
from resnotes.evidence import Evidence


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

@pytest.mark.parametrize('weighed, said', [(0, True), (4, True), (5, False), (10, False)])
def test_a_main_path_with_weight_layers_forgets_by_itself(weighed, said):
    made = forgetful(99)
    made.weighed = weighed
    assert (propagation.input_is_forgotten(made) is not None) == said
