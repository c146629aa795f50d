"""The captured step: the training it replays is the ordinary training, and what it refuses.
Each test runs on a GPU where there is one, and on the CPU with a stand-in for the recording."""
from functools import partial

import numpy as np
import pytest
import torch
import fastai.callback.schedule
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper, SGD
from fastai.torch_core import no_random
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnotes import networks, speed
from resnotes.callbacks import AuditAtStart, SignalRecorder, Watch
from resnotes.data import digits
from resnotes.learner import classifier, segmenter
from resnotes.losses import BCEMaskLoss, IoULoss, LovaszLoss, MixedLoss, jaccard_gains
from resnotes.resnet import ResNetConfig
from resnotes.speed import Bf16, ChannelsLast, Compiled, CudaGraphs, StageCheckpoint

small = ResNetConfig((2, 2), 4, order='preact', in_channels=1, drop_path_rate=.2)


# a recording without a GPU

def tensors(tree): return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]
def place(t): return t.untyped_storage().data_ptr()

class Recording(TorchDispatchMode):
    """A CUDA graph on a CPU: notes every operator with the memory it reads and writes; a replay runs these again on the same memory, without Python.
    As on a GPU, recording changes nothing that was there before, what it makes holds no numbers yet, and reading a number is refused."""
    reads = {torch.ops.aten._local_scalar_dense, torch.ops.aten.equal, torch.ops.aten.nonzero}

    def __init__(self):
        super().__init__()
        self.calls, self.found, self.made = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in self.reads: raise RuntimeError('operation not permitted when stream is capturing')
        for t in tensors((args, kwargs)):
            if place(t) not in self.made: self.found.setdefault(place(t), (t, t.clone()))
        out = func(*args, **(kwargs or {}))
        self.made |= {place(t): t for t in tensors(out) if place(t) not in self.found}
        self.calls.append((func, args, kwargs or {}, tensors(out)))
        return out

    @torch.no_grad()
    def forget(self):
        "Undo what running did; a recording does not run"
        for t, before in self.found.values(): t.copy_(before)
        for *_, outs in self.calls:
            for t in outs:
                if place(t) in self.made: t.fill_(float('nan') if t.is_floating_point() else 0)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, outs in self.calls:
            for new, old in zip(tensors(func(*args, **kwargs)), outs):
                if new.data_ptr() != old.data_ptr(): old.copy_(new)

def record(run, warmup, device):
    "Takes the place of `speed._record`"
    recording = Recording()
    with torch.random.fork_rng(devices=[]):
        for _ in range(warmup): run()
        with recording: out = run()
    recording.forget()
    return recording.replay, out

@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device'))])
def device(request, monkeypatch):
    "Where a captured step is tried"
    if request.param == 'cpu':
        monkeypatch.setattr(speed, '_require_cuda', lambda model: None)
        monkeypatch.setattr(speed, '_record', record)
    return request.param

def test_the_stand_in_repeats_operators_and_nothing_else():
    x, seen, recording = torch.ones(3), [], Recording()
    def run():
        seen.append(1)
        return (x*2).add_(1), x.add_(1)
    with recording: out, _ = run()
    recording.forget()
    assert out.isnan().all() and x.tolist() == [1, 1, 1]
    x.fill_(5)
    recording.replay()
    assert out.tolist() == [11]*3 and x.tolist() == [6]*3 and len(seen) == 1
    with pytest.raises(RuntimeError, match='capturing'), Recording(): x.sum().item()


# the same training

def steps(learn): return np.array([float(l) for l in learn.recorder.losses])

def fitted(device, cbs=(), make=Learner, config=small, bs=350, epochs=1, lr=.02, fit='fit', drop_last=True, **kwargs):
    "A learner after its fit, with the losses of all steps"
    data = digits(bs=bs).to(device)
    data.train.drop_last = drop_last
    kwargs = (dict(loss_func=CrossEntropyLossFlat(), opt_func=SGD) if make is Learner else {}) | kwargs
    with no_random(0):
        data.train.rng.seed(0)
        learn = make(data, networks.build(config), cbs=list(cbs), **kwargs)
        learn.recorder.smooth_loss.beta = 0
        with learn.no_bar(), learn.no_logging(): getattr(learn, fit)(epochs, lr)
    return learn

def close(a, b, device):
    "The same bits on a CPU; on a GPU a recording may hold other kernels, and training amplifies rounding"
    if device == 'cpu': return np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a[:3], b[:3], rtol=1e-4)
    np.testing.assert_allclose(a, b, rtol=.02)

def same_training(device, others=lambda: [], **kwargs):
    "Fit with and without the callback, compare, and give the callback and both learners"
    graphs = CudaGraphs()
    learn, ordinary = fitted(device, [graphs, *others()], **kwargs), fitted(device, others(), **kwargs)
    close(steps(learn), steps(ordinary), device)
    for a, b in zip(learn.recorder.values, ordinary.recorder.values): close(a, b, device)
    for (name, x), y in zip(learn.model.state_dict().items(), ordinary.model.state_dict().values()):
        if device == 'cpu' or not x.is_floating_point(): assert torch.equal(x, y), name
    return graphs, learn, ordinary

no_bf16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)

@pytest.mark.parametrize('others', [
    lambda: [], lambda: [ChannelsLast()], lambda: [GradientClip(.1)], lambda: [Compiled(backend='eager')], lambda: [Watch(), AuditAtStart(warn=False)],
    pytest.param(lambda: [Bf16(), ChannelsLast()], marks=pytest.mark.skipif(no_bf16, reason='no bfloat16 units'))],
    ids=['alone', 'channels last', 'clip', 'compiled', 'watch and audit', 'bfloat16'])
def test_replayed_steps_are_the_ordinary_steps(device, others):
    graphs, learn, _ = same_training(device, others, epochs=2)
    assert graphs.replayed == len(steps(learn)) == 2*len(learn.dls.train)

@pytest.mark.parametrize('config', [dict(drop_path_rate=.5), dict(dropout=.3), dict(blocks=(20,))], ids=['stochastic depth', 'dropout', 'deep'])
def test_replays_draw_the_random_numbers_of_the_ordinary_steps(device, config):
    same_training(device, config=ResNetConfig(**dict(dict(blocks=(2,), width=8, order='preact', in_channels=1), **config)), lr=.005)

@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, foreach=True)),
                                 partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['fastai', 'foreach', 'adamw'])
def test_any_optimizer_and_a_schedule_stay_outside(device, opt):
    _, learn, ordinary = same_training(device, opt_func=opt, fit='fit_one_cycle', lr=2e-3)
    assert len(set(learn.recorder.lrs)) > 3 and learn.recorder.lrs == ordinary.recorder.lrs

def test_a_batch_of_another_shape_goes_the_ordinary_way(device):
    graphs, learn, _ = same_training(device, bs=500, epochs=2, drop_last=False)   # 500, 500, 437
    assert len(steps(learn)) == 6 and graphs.replayed == 4

@pytest.mark.parametrize('loss', [None, nn.CrossEntropyLoss(label_smoothing=.1)])
def test_the_classifier_of_the_book_takes_it(device, loss):
    graphs, learn, _ = same_training(device, make=classifier, loss=loss)
    assert graphs.replayed == len(learn.dls.train)

@pytest.mark.parametrize('make', [lambda: IoULoss(over='batch'), LovaszLoss, lambda: LovaszLoss('sigmoid', over='batch'), BCEMaskLoss,
                                  lambda: MixedLoss((BCEMaskLoss(), 1), (IoULoss(), .5))])
def test_segmenters_and_mask_losses_can_be_recorded(device, make, monkeypatch):
    if device == 'cpu':   # what a GPU does otherwise: it looks at a mask's values without waiting, and sorts without numpy
        monkeypatch.setattr('resnotes.checks._wrong', lambda fits, wait, says: False)
        monkeypatch.setattr('resnotes.losses._packed_gains', lambda e, t: jaccard_gains(e, t).masked_fill(e <= 0, 0))
    with no_random(0): pairs = [(torch.randn(1, 33, 33), (torch.rand(1, 33, 33) > .5).float()) for _ in range(12)]
    curves, graphs = [], CudaGraphs()
    for cbs in (graphs, []):
        data = DataLoaders.from_dsets(pairs, pairs[:4], bs=4, shuffle=False, num_workers=0, device=torch.device(device))
        with no_random(0):
            learn = segmenter(data, networks.build('strict_unet48', width=4), .05, loss=make(), cbs=cbs, metrics=[])
            learn.recorder.smooth_loss.beta = 0
            with learn.no_bar(), learn.no_logging(): learn.fit(2)
        curves.append(steps(learn))
    close(*curves, device)
    assert graphs.replayed == len(curves[0]) == 6

def test_a_second_fit_records_anew_and_is_free_of_earlier_steps(device, monkeypatch):
    "A loss that someone keeps, such as that of an interrupted fit, keeps the accumulators of its stream"
    learn, kept = fitted(device), speed._record
    before, (x, y) = steps(learn), learn.dls.one_batch()
    held = learn.loss_func(learn.model(x), y)
    held.backward()
    nodes = lambda: [torch.autograd.graph.get_gradient_edge(p).node for p in learn.model.parameters()]
    for node in nodes(): node.metadata['earlier'] = True
    assert held.grad_fn and all('earlier' in node.metadata for node in nodes())   # they are alive
    def free(*args):
        assert not any('earlier' in node.metadata for node in nodes())
        return kept(*args)
    monkeypatch.setattr(speed, '_record', free)
    graphs = CudaGraphs()
    with learn.no_bar(), learn.no_logging():
        for _ in range(2): learn.fit(1, .02, cbs=graphs)
    assert graphs.replayed == len(learn.dls.train) and steps(learn).mean() < before.mean()
    assert graphs.replay is None and all(p.grad is None for p in learn.model.parameters())

def test_warm_up_and_recording_leave_no_trace(device):
    seen = []
    class Look(Callback):
        order = 1001
        def before_step(self):
            seen.append({int(b) for name, b in self.model.named_buffers() if 'num_batches' in name})
            raise CancelFitException
    weights = fitted(device, [CudaGraphs(5), Look()]).model
    with no_random(0): start = networks.build(small)
    assert seen == [{1}] and all(torch.equal(p.cpu(), q) for p, q in zip(weights.parameters(), start.parameters()))

def test_batches_that_a_loader_keeps_are_left_alone(device):
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 1, 8, 8, generator=g).to(device), torch.randint(0, 10, (8,), generator=g).to(device)) for _ in range(3)]
    before, loaders = [x.clone() for x, _ in batches], [DataLoader(batches, bs=None) for _ in range(2)]
    learn = Learner(DataLoaders(*loaders, device=torch.device(device)), networks.build(small), CrossEntropyLossFlat(), opt_func=SGD, cbs=CudaGraphs())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert all(torch.equal(x, kept) for (x, _), kept in zip(batches, before))

def test_weights_keep_their_memory_and_frozen_ones_their_values(device):
    class Freeze(Callback):
        def before_fit(self):
            self.learn.model.stages[0].requires_grad_(False)
            self.places = [p.data_ptr() for p in self.learn.model.parameters()]
            self.frozen = [p.clone() for p in self.learn.model.stages[0].parameters()]
    freeze = Freeze()
    same_training(device, lambda: [freeze])
    fitted(device, [freeze, CudaGraphs()])
    model = freeze.learn.model
    assert [p.data_ptr() for p in model.parameters()] == freeze.places
    assert all(torch.equal(p, q) for p, q in zip(model.stages[0].parameters(), freeze.frozen))


# refusals

@pytest.mark.parametrize('other', [partial(GradientAccumulation, 64), MixedPrecision, MixUp, StageCheckpoint, SignalRecorder, ActivationStats])
def test_refuses_what_a_replay_would_silence(device, other):
    with pytest.raises(ValueError, match='CudaGraphs cannot replay a step beside'): fitted(device, [CudaGraphs(), other()])

@pytest.mark.parametrize('change', [dict(after_pred=lambda self: setattr(self.learn, 'pred', self.pred*2)), dict(after_loss=lambda self: self.learn.loss_grad.mul_(2)),
                                    dict(before_backward=lambda self: setattr(self.learn, 'loss_grad', self.loss_grad + 1))], ids=lambda c: next(iter(c)))
def test_refuses_a_changed_prediction_or_loss(device, change):
    with pytest.raises(ValueError, match='a callback changes'): fitted(device, [CudaGraphs(), Callback(**change)])

def test_a_step_that_reads_a_number_cannot_be_recorded(device):
    def loss(pred, y): return nn.functional.cross_entropy(pred, y)*(1 + 0*pred.sum().item())
    with pytest.raises(RuntimeError, match='captur'): fitted(device, [CudaGraphs()], loss_func=loss)

def test_refuses_weights_on_a_cpu():
    with pytest.raises(RuntimeError, match='CudaGraphs needs .*a CUDA device'): fitted('cpu', [CudaGraphs()])
