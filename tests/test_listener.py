"What visitors of a forward pass hear and change, and how a model is left behind"
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resnotes.listener import (Listener, check_traceable, feature_moments, fresh_copies, followed, listen, map_tensors, mean_square, tensors_in,
                               which_features)

class Net(nn.Module):
    "A forward written as a function of the module and its input"
    def __init__(self, forward, **members):
        super().__init__()
        self.function = forward
        for name, m in members.items(): setattr(self, name, m)
    def forward(self, *args, **kwargs): return self.function(self, *args, **kwargs)

class Heard:
    "Sites of all sums, and names of all calls"
    def __init__(self): self.sites, self.names = [], []
    def after(self, call):
        self.names.append(call.func.__name__)
        if call.site: self.sites.append(call.site)

class Replaced:
    "Puts a constant in the place of every sum of two tensors"
    def __init__(self): self.asked = 0
    def before_sum(self, site, x, y):
        self.asked += 1
        return torch.full_like(x, 7.)

def vectors(): return torch.randn(2, 4)

@pytest.mark.parametrize('add', [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: torch.add(x, y, alpha=2), lambda x, y: x.lerp(y, .5), lambda x, y: torch.addcmul(x, y, y),
    lambda x, y: torch.rsub(x, y), lambda x, y: sum([x, y])])
def test_a_sum_is_replaced(add):
    visitor = Replaced()
    assert (listen(Net(lambda s, x, y: add(x, y)), (vectors(), vectors()), {}, visitor) == 7).all() and visitor.asked == 1

@pytest.mark.parametrize('add', [
    lambda x, y: x.add_(y), lambda x, y: x.sub_(y, alpha=2), lambda x, y: x.__iadd__(y), lambda x, y: x.lerp_(y, .5), lambda x, y: x.addcmul_(y, y)])
def test_a_sum_in_place_is_replaced_in_place(add):
    def forward(s, x, y):
        add(x, y)
        return x
    assert (listen(Net(forward), (vectors(), vectors()), {}, Replaced()) == 7).all()

def test_what_is_no_sum_of_two_tensors_is_not_asked_about():
    visitor = Replaced()
    listen(Net(lambda s, x: 1 + x*2 - 3), [vectors()], {}, visitor)
    assert visitor.asked == 0

def test_a_visitor_hears_what_it_wants_and_the_others_hear_all():
    class Picky(Heard):
        def wants(self, kind, name): return kind == 'sum' or name == 'relu'
    def forward(s, x): return torch.addmm(x.relu(), x, x).relu_() + torch.stack([x, x]).sum(0)
    picky, heard = Picky(), Heard()
    listen(Net(forward), [torch.randn(4, 4)], {}, picky, heard)
    assert picky.sites == heard.sites and len(picky.sites) == 3     # those within addmm and within the stack
    assert picky.names == [name for name in heard.names if name in ('add', '__add__', 'relu')]
    assert set(heard.names) > set(picky.names)

def test_a_counter_of_whole_numbers_has_no_site():
    def forward(s, x):
        s.bn.num_batches_tracked.add_(1)
        return s.bn(x).add_(x)
    heard, net = Heard(), Net(forward, bn=nn.BatchNorm1d(4))
    listen(net, [vectors()], {}, heard)
    assert heard.names.count('add_') == 3 and len(heard.sites) == 1

def test_sites_are_the_same_in_every_pass_and_differ_within_one():
    block = Net(lambda s, x: x + s.a(x) + x, a=nn.Linear(4, 4))
    model = Net(lambda s, x: s.block(s.block(x) + x), block=block)
    first, second = Heard(), Heard()
    for visitor in (first, second): listen(model, [vectors()], {}, visitor)
    assert first.sites == second.sites and len(set(first.sites)) == 5
    assert [(s.modules, s.number) for s in first.sites] == [(('block', ''), 1), (('block', ''), 2), (('',), 1), (('block', ''), 3), (('block', ''), 4)]
    assert all('test_listener.py' in s.where for s in first.sites)

def test_several_visitors_and_their_order():
    heard, visitor = Heard(), Replaced()
    out = listen(Net(lambda s, x: (x + x).relu()), [vectors()], {}, heard, visitor)
    assert (out == 7).all() and len(heard.sites) == visitor.asked == 1 and heard.names[-1] == 'relu'

def test_the_listener_hears_only_its_own_thread_and_only_while_it_calls():
    heard, x = Heard(), vectors()
    def forward(s, x):
        other = threading.Thread(target=lambda: torch.zeros(3).sin())
        other.start()
        other.join()
        return x.cos()
    Listener(Net(forward), heard).call([x], {})
    x.tan()
    assert 'cos' in heard.names and not {'sin', 'tan'} & set(heard.names)

def test_copies_may_be_changed_and_are_followed():
    x, tokens = vectors(), torch.arange(3)
    given = x.clone()
    (y, more), = fresh_copies([[x, {'tokens': tokens}]])
    y += 1
    assert torch.equal(x, given) and y.grad_fn is not None and not x.requires_grad
    assert more['tokens'] is not tokens and not more['tokens'].requires_grad

def test_tensors_in_nested_values():
    values = [{'a': torch.zeros(1), 'b': (torch.ones(1), 'text', None)}, 3, [[torch.full((1,), 2.)]]]
    assert [t.item() for t in tensors_in(values)] == [0, 1, 2]
    assert [t.item() for t in tensors_in(map_tensors(lambda t: t + 1, values))] == [1, 2, 3]

@pytest.mark.parametrize('fails', [False, True])
def test_followed_puts_everything_back(fails):
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[1].eval()
    modes, flags, buffers = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], [b.clone() for b in model.buffers()]
    try:
        with torch.no_grad(), followed(model):
            assert torch.is_grad_enabled() and all(p.requires_grad for p in model.parameters()) and not any(m.training for m in model.modules())
            model[1].train()
            model(vectors())
            if fails: raise KeyError
    except KeyError: assert fails
    assert modes == [m.training for m in model.modules()] and flags == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(b, c) for b, c in zip(buffers, model.buffers()))

def test_moments_by_feature():
    x = torch.randn(50, 6, 5)*2 + torch.randn(6, 1) + torch.randn(5)
    second, channels, last = feature_moments(x).tolist()
    assert second == pytest.approx(x.square().mean().item(), rel=1e-5) == pytest.approx(mean_square(x).item(), rel=1e-5)
    assert channels == pytest.approx(x.var((0, 2), correction=0).mean().item(), rel=1e-4)
    assert last == pytest.approx(x.var((0, 1), correction=0).mean().item(), rel=1e-4)

@pytest.mark.parametrize('add', [
    lambda x, y: torch.stack([x, y]).sum(0), lambda x, y: torch.stack([x, y], 1).sum(-2), lambda x, y: torch.stack([x, y], 1).sum((1,)), lambda x, y: torch.addmm(x, y, torch.ones(4, 4)), lambda x, y: torch.baddbmm(x[None], y[None], torch.ones(1, 4, 4)), lambda x, y: x.index_add(0, torch.tensor([0, 1]), y),
    lambda x, y: x.scatter_add(0, torch.zeros(2, 4).long(), y), lambda x, y: (x*1).addmm_(y, torch.ones(4, 4), beta=2, alpha=3), lambda x, y: (x*1).index_add_(0, torch.tensor([1]), y[:1], alpha=2)])
def test_sums_within_other_operations_are_heard_and_right(add):
    x, y, visitor = vectors(), vectors(), Replaced()
    model, heard = Net(lambda s, x, y: add(x, y)), Heard()
    assert torch.allclose(listen(model, (x, y), {}, heard), add(x, y), atol=1e-6)
    site, = heard.sites
    assert 'test_listener.py' in site.where and site.modules == ('',)
    assert (listen(model, (x, y), {}, visitor) == 7).all() and visitor.asked == 1

def test_stacks_are_not_kept():
    class Kept:
        def after(self, call): self.listener = call.listener
    kept = Kept()
    listen(Net(lambda s, x: torch.stack([x, x]).sum(1)), [vectors()], {}, kept)
    assert len(kept.listener.stacks) == 0

class Summands:
    "What visitors are told of each sum"
    def __init__(self): self.pairs = []
    def before_sum(self, site, x, y): self.pairs.append((x, y))

@pytest.mark.parametrize('add, parts', [
    (lambda a, b: a + b, lambda a, b: (a, b)), (lambda a, b: torch.add(a, b, alpha=2), lambda a, b: (a, 2*b)), (lambda a, b: a - b, lambda a, b: (a, -b)),
    (lambda a, b: torch.sub(a, b, alpha=3), lambda a, b: (a, -3*b)), (lambda a, b: torch.rsub(a, b, alpha=3), lambda a, b: (-3*a, b)),
    (lambda a, b: torch.addcmul(a, b, b, value=3), lambda a, b: (a, 3*b*b)), (lambda a, b: a.addcmul(b, a), lambda a, b: (a, a*b)),
    (lambda a, b: a.lerp(b, .25), lambda a, b: (.75*a, .25*b)), (lambda a, b: torch.lerp(input=a, end=b, weight=b), lambda a, b: ((1 - b)*a, b*b)),
    (lambda a, b: torch.addmm(a, b, b.mT, beta=2, alpha=3), lambda a, b: (2*a, 3*b@b.mT))])
def test_the_two_summands_of_every_kind_of_sum(add, parts):
    "Each in its own right, with its factor, and their sum is what the call returns"
    a, b, told = torch.randn(3, 3), torch.randn(3, 3), Summands()
    out = listen(Net(lambda s, x, y: add(x, y)), (a, b), {}, told)
    (x, y), = told.pairs
    for got, want in zip((x, y, x + y), (*parts(a, b), add(a, b))): torch.testing.assert_close(got, want)
    torch.testing.assert_close(out, add(a, b))

@pytest.mark.parametrize('scale', [1e-4, 1, 1e4])
def test_moments_go_with_the_square_of_the_scale(scale):
    "Also the limit below which a variance is rounding"
    x = torch.randn(50, 6, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(6.)[:, None]
    torch.testing.assert_close(feature_moments(scale*x), scale**2*feature_moments(x), rtol=1e-4, atol=0)
    assert feature_moments(scale*torch.arange(1., 6).expand(50, 6, 5))[2] == 0

@pytest.mark.parametrize('layer, shape, dimension', [
    (nn.Linear(3, 5), (2, 7, 5), 2), (nn.Linear(3, 5), (2, 5, 7), 1), (nn.Linear(3, 5), (2, 5, 5), 2), (nn.Linear(3, 5), (2, 3, 4), 2), (nn.Linear(3, 5), (4,), 2),
    (nn.Conv1d(3, 5, 1), (2, 5, 7), 1), (nn.Conv1d(3, 5, 1), (2, 7, 5), 2), (nn.Conv1d(3, 5, 1), (2, 5, 5), 1), (nn.Conv1d(3, 5, 1), (2, 3, 4), 1)])
def test_features_lie_where_the_layer_puts_them_unless_the_shape_says_otherwise(layer, shape, dimension):
    assert which_features(nn.Sequential(layer), '0', shape) == dimension

def test_weights_without_numbers_are_refused_only_where_numbers_are_needed():
    model, x = nn.Linear(2, 2, device='meta'), torch.zeros(1, 2, device='meta')
    assert list(check_traceable(model, x)) == ['weight', 'bias']
    with pytest.raises(ValueError, match='weights on the meta device'): check_traceable(model, x, numbers=True)

def test_modules_functions_and_what_has_no_attributes_are_no_objects_with_tensors():
    held = SimpleNamespace(x=torch.ones(1))
    def function(): pass
    function.kept = torch.ones(1)
    assert list(tensors_in([range(3), slice(1), function, nn.Linear(1, 1), torch, SimpleNamespace], objects=3)) == []
    assert len(list(tensors_in(held, objects=1))) == 1 and list(tensors_in(held)) == list(tensors_in(SimpleNamespace(held=held), objects=1)) == []

class Named(dict): pass
class Row(list): pass
@dataclass(slots=True)
class Slotted:
    x:torch.Tensor
    n:int

@pytest.mark.parametrize('batch', [Named(x=torch.ones(2)), Row([torch.ones(2)]), Slotted(torch.ones(2), 3), Named(x=Row([torch.ones(2)]))], ids=['dict', 'list', 'slots', 'nested'])
def test_classes_of_one_s_own_are_copied_with_their_tensors(batch):
    copied = fresh_copies(batch)
    (mine,), (other,) = tensors_in([batch]), tensors_in([copied])
    assert type(copied) is type(batch) and other is not mine and torch.equal(mine, other) and not other.is_leaf
    assert [t.tolist() for t in tensors_in([map_tensors(lambda t: 3*t, batch)])] == [[3., 3.]] and mine.tolist() == [1., 1.]

def test_lengths_may_stay_on_the_host():
    "As `pack_padded_sequence` wants them"
    model, x = nn.Linear(2, 2).to('meta'), torch.zeros(3, 2, device='meta')
    check_traceable(model, (x, torch.tensor([2, 1])))
    with pytest.raises(ValueError, match='example must be on the device of the model, meta'): check_traceable(model, (x, torch.zeros(3)))

def test_a_call_stands_where_it_is_written_and_a_cell_has_no_file():
    def places(file):
        exec(compile('\ndef add(x): return x + x', file, 'exec'), made := {})
        heard = Heard()
        listen(Net(lambda s, x: made['add'](x)), [vectors()], {}, heard)
        return [site.where for site in heard.sites]
    assert places('other.py') == ['other.py:2'] and places('/tmp/ipykernel_1/2.py') == places('<ipython-input-1>') == ['cell:2']

class Lost:
    "Where a call of this name would use a weight without gradients"
    def __init__(self, name): self.name, self.places = name, []
    def after(self, call):
        if call.func.__name__ == self.name: self.places.append(call.listener.lost())

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.mul(2)

def test_a_place_without_gradients_is_the_caller_s_and_none_in_an_autograd_function():
    model = Net(lambda s, x: s.a(Doubled.apply(x)).mul(2), a=nn.Linear(4, 4))
    product, layer = Lost('mul'), Lost('linear')
    listen(model, [vectors()], {}, product, layer)
    (inside, (where, modules)), ((layer_where, layer_modules),) = product.places, layer.places
    assert inside is None and modules == layer_modules == ('',) and where == layer_where and 'test_listener.py' in where

@pytest.mark.parametrize('dtype, n', [(torch.float32, 100), (torch.float32, 2**12), (torch.float16, 2**13), (torch.bfloat16, 2**13), (torch.float64, 2**13)])
def test_the_second_moment_has_the_digits_of_float64_where_that_costs_little(dtype, n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert mean_square(x).item() == pytest.approx(x.double().square().mean().item(), rel=1e-12)

@pytest.mark.parametrize('scale', [1e-25, 1e-16, 1e-3, 1., 1e18, 1e25])
def test_the_second_moment_of_many_numbers_has_the_digits_of_float32_at_every_scale(scale):
    x = scale*torch.randn(2**12 + 1, generator=torch.Generator().manual_seed(0))
    assert mean_square(x).item() == pytest.approx(x.double().square().mean().item(), rel=1e-6, abs=0)
    if 1e-3 <= scale <= 1: assert mean_square(x) == x.square().mean()   # summed in float32, which is faster

@pytest.mark.parametrize('depth', [3, 4])
def test_an_example_may_hide_its_tensor_three_objects_deep(depth):
    example = torch.ones(1, 2)
    for _ in range(depth): example = SimpleNamespace(held=example)
    if depth == 3: assert list(check_traceable(nn.Linear(2, 2), example)) == ['weight', 'bias']
    else:
        with pytest.raises(ValueError, match='example must hold a tensor'): check_traceable(nn.Linear(2, 2), example)
    copies = list(tensors_in(map_tensors(lambda t: 3*t, [example]), objects=4))
    assert [t.tolist() for t in copies] == [[[3., 3.]] if depth == 3 else [[1., 1.]]]
