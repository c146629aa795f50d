"Segments that are computed again: the same numbers, dropped branches and failures included; bytes alive at once"
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from resnotes.blocks import StrictBlock
from resnotes.memory import *


def training_step(blocks, run, x):
    "Output, gradients and buffers of one training step with the same coins"
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = run(blocks, x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in blocks.parameters()), *blocks.buffers()]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('segments', [1, 3, 5, 99])
def test_segments_change_nothing(segments, training):
    blocks = nn.Sequential(*[StrictBlock(4, dropout=.2, drop_path=.3) for _ in range(5)]).train(training)
    twin, x = copy.deepcopy(blocks), torch.randn(2, 4, 5, 5)
    plain, cut = training_step(blocks, lambda b, x: b(x), x), training_step(twin, lambda b, x: checkpointed(b, x, segments), x)
    for a, b in zip(plain, cut, strict=True): assert torch.equal(a, b)


def test_segments_without_gradients():
    blocks, x = nn.ModuleList([StrictBlock(4) for _ in range(3)]).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad(): assert torch.equal(checkpointed(blocks, x, 2), nn.Sequential(*blocks)(x))
    assert checkpointed([], x, 2) is x


def test_a_failing_backward_puts_buffers_back():
    class Fails(nn.Module):
        calls = 0
        def forward(self, x):
            self.calls += 1
            if self.calls > 1: raise RuntimeError('second call')
            return x
    blocks = nn.Sequential(Fails(), nn.BatchNorm2d(4))
    buffers = list(blocks.buffers())
    y = checkpointed(blocks, torch.randn(2, 4, 3, 3), 1)
    with pytest.raises(RuntimeError, match='second call'): y.sum().backward()
    assert all(a is b for a, b in zip(buffers, blocks.buffers(), strict=True))


def test_peak_bytes():
    x = torch.zeros(10)
    assert peak_bytes(lambda: None) == 0
    assert peak_bytes(lambda: (x.view(5, 2), x.relu_())) == 0
    assert peak_bytes(lambda: x.double()) == 80


def test_segments_must_be_counted():
    with pytest.raises(ValueError, match='^segments must be at least 1'): checkpointed([], torch.zeros(1), 0)


def test_a_buffer_that_decides_the_output_holds_what_it_held():
    "Spectral norm takes a step towards the largest singular value in each pass"
    def gradient(run):
        torch.manual_seed(1)
        model = nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 6))
        run(model, torch.randn(5, 6)).square().sum().backward()
        return [model[0].parametrizations.weight.original.grad, *model.buffers()]
    for a, b in zip(gradient(lambda m, x: checkpointed(m, x, 2)), gradient(lambda m, x: m(x)), strict=True): assert torch.equal(a, b)
