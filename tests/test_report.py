"The audit takes any trainable network, whatever goes in and comes out, and says nothing of healthy ones"
import copy, math
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnotes import report
from resnotes.report import audit
from nets import images, normed, same, snapshot, strict, transformer


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def labels(n): return torch.arange(n)%10

class Dense(nn.Module):
    "Concatenates instead of adding"
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1 + 4*k, 4, 3, padding=1) for k in range(4))
        self.head = nn.Linear(17, 10)
    def forward(self, x):
        for conv in self.convs: x = torch.cat([x, conv(x).relu()], 1)
        return self.head(x.mean((2, 3)))

class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(8, 16, batch_first=True), nn.Linear(16, 10)
    def forward(self, x): return self.head(self.rnn(x[:, 0])[0][:, -1])

def vgg(): return nn.Sequential(*[m for i in (1, 8, 8) for m in (nn.Conv2d(i, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())], nn.Flatten(), nn.Linear(512, 10))

plain = {'mlp': lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), 'vgg': vgg, 'densenet': Dense,
         'lstm': lambda: Recurrent(nn.LSTM), 'gru': lambda: Recurrent(nn.GRU), 'linear': lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
         'shared weights': lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))}

@pytest.mark.parametrize('name', plain)
def test_networks_without_branches_have_rows_of_layers(name):
    model, x, y = plain[name](), images(16), labels(16)
    if name == 'shared weights': x = x[:, 0, 0]
    before = snapshot(model)
    a = audit(model, x, y, loss=F.cross_entropy)
    assert not a.findings and a.depth == 0 and len(a.rows) == len(a.layers) > 0 and a.rows[-1].gradient > 0 and 'no residual branches' in repr(a)
    assert same(before, snapshot(model)) and all(r.module in dict(model.named_modules()) or r.module == '' or 'weight' in r.module for r in a.rows)
    assert a.to_frame().shape[0] == len(a.rows)

@pytest.mark.parametrize('make', [strict, normed])
def test_rows_are_branches_where_there_are_some(make):
    a = audit(make(), images(16), labels(16), loss=F.cross_entropy)
    assert len(a.rows) == 4 == a.depth and len(a.layers) > 4 and not a.findings

class Named:
    "An object of somebody's own"
    def __init__(self, **kwargs): vars(self).update(kwargs)

@dataclass
class Given:
    x:torch.Tensor
    note:str = 'kept'

class Takes(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of, self.layer = of, nn.Linear(8, 4)
    def forward(self, given): return self.layer(self.of(given)).tanh()

x8 = torch.randn(16, 8)
@pytest.mark.parametrize('given, of', [
    (Named(store=Named(mapping={'x': x8})), lambda g: g.store.mapping['x']), (UserDict(x=x8), lambda g: g['x']), (Given(x8), lambda g: g.x),
    ({'a': [x8]}, lambda g: g['a'][0]), ((x8, 'text'), lambda g: g[0])])
def test_what_goes_in(given, of):
    kept = copy.deepcopy(of(given))
    a = audit(Takes(of), given)
    assert len(a.layers) == 1 and not a.findings and torch.equal(of(given), kept)

def test_what_comes_out_may_be_anything_with_a_loss():
    class Says(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)
        def forward(self, x, y): return Named(text='fine', loss=F.cross_entropy(self.layer(x), y))
    a = audit(Says(), x=x8, y=labels(16)%4, loss=lambda out: out.loss)
    assert math.isfinite(a.value) and a.layers[0].gradient > 0 and not a.findings

def test_wrappers_and_formats():
    model = strict()
    reference = audit(model, x := images(16))
    assert [r.main for r in audit(nn.DataParallel(model), x).rows] == [r.main for r in reference.rows]
    class FullyShardedDataParallel(nn.Sequential): pass
    with pytest.raises(ValueError, match='whole weights'): audit(FullyShardedDataParallel(nn.Linear(8, 8)), x8)
    assert not audit(copy.deepcopy(model).bfloat16(), x.bfloat16()).findings

def test_stochastic_depth_is_not_called_closed():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
        def forward(self, x): return x + self.layer(x.relu())*(0. if self.training else 1.)
    assert not audit(nn.Sequential(Dropped(), Dropped(), nn.Linear(8, 4)), x8).findings

def test_a_gate_of_one_value_per_image_is_not_dead():
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
            nn.init.constant_(self.a.bias, -9)
        def forward(self, x):
            h = self.conv(x)
            return h*self.b(self.a(h.mean((2, 3), keepdim=True)).relu()).sigmoid()
    assert not audit(Squeeze(), images(16)).findings

def test_unused_and_frozen_parameters_are_notes():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    model.spare = nn.Linear(3, 3)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    model[0].requires_grad_(False)
    a = audit(model, x8)
    assert not a.findings and any('take no part' in n for n in a.notes) and any('frozen' in n for n in a.notes)

def test_noise_on_request():
    a = audit(strict(), images(16), noise=True)
    assert 0 < a.noise < 40 and math.isnan(audit(strict(), images(16)).noise) and math.isnan(audit(normed(40), images(16), noise=False).noise)

def test_the_page_is_one_file(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    path = audit(model, images(16), labels(16), loss=F.cross_entropy).save(tmp_path/'a.html', title='<Mine>')
    page = path.read_text()
    assert '&lt;Mine&gt;' in page and 'add up to one' in page and 'data:image/png;base64' in page and 'http' not in page and '<table' in page

def test_plain_and_residual_have_pictures():
    import matplotlib.pyplot as plt
    for model in (plain['mlp'](), strict()): assert len(audit(model, images(16)).plot()) == 3
    plt.close('all')

def test_copies_are_counted_by_their_numbers():
    "Orthogonal weights of one shape have one norm and are no copies"
    def said(model): return [n for n in audit(model.train(), torch.randn(16, 64), labels(16), loss=F.cross_entropy).notes if 'cop' in n]
    net = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(64, 64, bias=False), nn.ReLU())])
    for layer in net[::2]: nn.init.orthogonal_(layer.weight)
    assert len({layer.weight.norm().item() for layer in net[::2]}) < 6 and said(net) == []
    net[2].weight.data.copy_(net[0].weight)
    assert said(net) == ['1 weight is an equal copy of another']
    for i in (6, 8): net[i].weight.data.copy_(net[4].weight)
    assert said(net) == ['3 weights are equal copies of others']

def test_one_layer_is_no_layers():
    assert '1 layer, no residual branches' in repr(audit(nn.Linear(8, 10), torch.randn(16, 8), labels(16), loss=F.cross_entropy))

@pytest.mark.parametrize('takes_index', [False, True])
def test_a_training_step_may_leave_out_the_index(takes_index):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)
        def training_step(self, *given): return F.cross_entropy(self.layer(given[0][0]), given[0][1])
    class Batch(Own):
        def training_step(self, batch): return super().training_step(batch)
    class Indexed(Own):
        def training_step(self, batch, batch_idx): return super().training_step(batch) + 0*batch_idx
    module = report._TrainingStep(Indexed() if takes_index else Batch())
    assert module((torch.randn(3, 4), torch.tensor([0, 1, 1])), 0).ndim == 0 and 'log' not in vars(module.module)
