"Callbacks that make a step cheaper: the same training, what they leave behind, what they refuse, and two processes"
import copy, json, os, subprocess, sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import fastai.callback.progress
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastai.torch_core import no_random
from hypothesis import given, settings, strategies as st
from torch import nn

from resnotes import networks, speed
from resnotes.blocks import BasicBlock, Residual, ResNeXtBlock
from resnotes.memory import peak_bytes
from resnotes.data import digits
from resnotes.resnet import ResNetConfig
from resnotes.speed import (Bf16, ChannelsLast, Compiled, CudaGraphs, StageCheckpoint, count_operators, data_parallel,
                            deal, residual_stages)

small = ResNetConfig((2, 2), 4, order='preact', in_channels=1, drop_path_rate=.2)


@pytest.fixture(scope='module')
def dls():
    "Digits, 6 batches of 200 an epoch; validation in one batch"
    return digits(bs=200).to('cpu')

def fitted(dls, cbs=None, config=small, lr=.02, epochs=1):
    "The learner after its fit, and every step's loss"
    with no_random(0):
        dls.train.rng.seed(0)
        model = networks.build(config) if isinstance(config, ResNetConfig) else config()
        learn = Learner(dls, model, CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)
        learn.recorder.smooth_loss.beta = 0
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr)
    return learn, np.array([float(l) for l in learn.recorder.losses])

@pytest.fixture(scope='module')
def plain(dls): return fitted(dls)


# the same training

@pytest.mark.parametrize('make, rtol', [(ChannelsLast, 1e-3), (Bf16, .05), (partial(Bf16, True), .05), (partial(StageCheckpoint, 1), 0), (StageCheckpoint, 0),
                                        (partial(Compiled, backend='aot_eager'), 1e-3), (partial(Compiled, True, backend='eager'), 1e-3)])
def test_losses_and_what_is_left_behind(dls, plain, make, rtol):
    learn, losses = fitted(dls, make())
    np.testing.assert_allclose(losses, plain[1], rtol=rtol)
    assert list(learn.model.state_dict()) == list(plain[0].model.state_dict())
    for m in learn.model.modules():
        assert 'forward' not in vars(m) and m._compiled_call_impl is None and not m._forward_pre_hooks
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in learn.model.parameters())
    assert {k: v for k, v in learn.model.state_dict().items() if 'num_batches' in k} == {k: v for k, v in plain[0].model.state_dict().items() if 'num_batches' in k}

def test_checkpoints_leave_the_same_weights(dls, plain):
    a, b = plain[0].model.state_dict(), fitted(dls, StageCheckpoint(2))[0].model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_bf16_is_bf16_inside_and_float32_outside(dls):
    seen = []
    class Look(Callback):
        order = 100
        def before_batch(self): self.learn.model.stages[0].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        def after_loss(self): assert self.pred.dtype == self.learn.loss.dtype == torch.float32
        def before_step(self): assert {p.grad.dtype for p in self.learn.model.parameters()} == {torch.float32}
    fitted(dls, [Bf16(), Look()])
    assert set(seen) == {torch.bfloat16} and not torch.is_autocast_enabled('cpu')
    seen.clear()
    fitted(dls, [Bf16(float32_stream=True), Look()])
    assert set(seen) == {torch.float32}

def test_an_error_leaves_no_autocast_behind(dls):
    class Break(Callback):
        def before_backward(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fitted(dls, [Bf16(), Break()])
    assert not torch.is_autocast_enabled('cpu')

def test_a_second_fit_after_an_error_is_clean(dls, plain):
    class Break(Callback):
        def before_backward(self): raise KeyboardInterrupt
    cbs = [StageCheckpoint(2), Bf16(True), ChannelsLast()]
    with no_random(0): learn = Learner(dls, networks.build(small), CrossEntropyLossFlat(), cbs=cbs)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Break())
        learn.fit(1)
    assert all('forward' not in vars(m) for m in learn.model.modules())

def test_a_fit_in_bf16_takes_away_what_an_interrupted_one_left(dls):
    "By the same callback or by another one"
    class Break(Callback):
        def before_backward(self): raise KeyboardInterrupt
    for again in ([], [Bf16(True)]):
        with no_random(0): learn = Learner(dls, networks.build(small), CrossEntropyLossFlat(), cbs=[] if again else Bf16(True))
        with learn.no_bar(), learn.no_logging():
            with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[Break(), *([Bf16(True)] if again else [])])
            learn.fit(1, cbs=again)
        assert not any('forward' in vars(m) or '_bf16' in vars(m) or m._forward_pre_hooks for m in learn.model.modules())

@pytest.mark.parametrize('make', [partial(StageCheckpoint, 2), Bf16, partial(Bf16, True)])
@pytest.mark.parametrize('interrupted', [True, False])
def test_a_copy_made_in_a_fit_or_after_an_interrupted_one_computes_with_its_own_weights(dls, make, interrupted):
    class Take(Callback):
        order = 60
        def before_backward(self):
            if interrupted: raise KeyboardInterrupt
            if not self.iter: self.learn.twin = copy.deepcopy(self.model)
    with no_random(0): learn = Learner(dls, networks.build(small), CrossEntropyLossFlat(), cbs=[make(), Take()])
    with learn.no_bar(), learn.no_logging():
        if interrupted:
            with pytest.raises(KeyboardInterrupt): learn.fit(1)
            learn.twin = copy.deepcopy(learn.model)
        else: learn.fit(1)
    x, twin, plain = dls.one_batch()[0], learn.twin.eval(), networks.build(small).eval()
    for p in twin.parameters(): p.data.mul_(.5)
    plain.load_state_dict(twin.state_dict())
    torch.testing.assert_close(twin(x), plain(x), rtol=.05, atol=.01)
    for p in twin.parameters(): p.data.zero_()
    assert not twin(x).any()

def test_an_interrupted_fit_does_not_leave_the_limit_of_compiled_code_raised(dls):
    class Break(Callback):
        def before_backward(self): raise KeyboardInterrupt
    config = torch._dynamo.config
    before = config.cache_size_limit
    with no_random(0): learn = Learner(dls, networks.build(small), CrossEntropyLossFlat(), cbs=Compiled(True, backend='eager'))
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Break())
        assert config.cache_size_limit == 64 > before
        learn.fit(1)
    assert config.cache_size_limit == before

def test_channels_last_takes_batches_of_one_and_images_of_one_pixel():
    for shape in ((1, 3, 1, 1), (1, 1, 5, 7), (2, 3, 4, 4)):
        x = torch.randn(*shape).transpose(2, 3)
        data = DataLoaders.from_dsets([(x[0], 0)]*2, [(x[0], 0)]*2, bs=1, num_workers=0)
        model = nn.Sequential(nn.Conv2d(shape[1], 2, 1), nn.Flatten(), nn.LazyLinear(2))
        model(x[:1])
        learn = Learner(data, model, CrossEntropyLossFlat(), cbs=ChannelsLast(), metrics=[])
        with learn.no_bar(), learn.no_logging(): learn.fit(1)

def test_compiled_weights_load_into_a_plain_model_and_back(dls, tmp_path):
    learn, _ = fitted(dls, Compiled(backend='eager'))
    torch.save(learn.model.state_dict(), tmp_path/'w.pth')
    networks.build(small).load_state_dict(torch.load(tmp_path/'w.pth', weights_only=True), strict=True)

def test_checkpoints_save_memory():
    model, x = networks.build(ResNetConfig((16,), 8, order='preact', in_channels=1)), torch.randn(2, 1, 16, 16)
    def step(): model(x).square().mean().backward()
    whole = peak_bytes(step)
    for stage in residual_stages(model): stage.forward = StageCheckpoint(4).in_segments(stage)
    for p in model.parameters(): p.grad = None
    assert peak_bytes(step) < .5*whole

def test_checkpoints_on_a_unet_and_a_foreign_model(dls):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(*[nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()) for _ in range(3)]), nn.Linear(64, 10)
        def forward(self, x): return self.head(self.body(x).flatten(1))
    a = fitted(dls, StageCheckpoint(2, stages=lambda m: [m.body]), config=Foreign)[1]
    np.testing.assert_array_equal(a, fitted(dls, config=Foreign)[1])
    with pytest.raises(ValueError, match='stages must find at least one'): fitted(dls, StageCheckpoint(2), config=Foreign)
    with pytest.raises(TypeError, match='stages must give nn.Sequential'): fitted(dls, StageCheckpoint(2, stages=lambda m: [m.head]), config=Foreign)
    assert [len(s) for s in residual_stages(networks.build('strict_unet48'))] == [2]*7


# refusals

@pytest.mark.parametrize('make, said', [(lambda: StageCheckpoint(0), 'segments must be at least 1'), (lambda: StageCheckpoint(1.5), 'segments must be a whole'),
                                        (lambda: Bf16('yes'), 'float32_stream must be one of'), (lambda: Compiled(units=2), 'units must be one of'),
                                        (lambda: Compiled(backend='quick'), 'backend must be one of'), (lambda: CudaGraphs(0), 'warmup must be at least 1'),
                                        (lambda: deal(range(4), 0, 2, 0), 'bs must'), (lambda: deal(range(4), 1, 0, 0), 'processes must'),
                                        (lambda: deal(range(4), 1, 2, -1), 'rank must')])
def test_refuses(make, said):
    with pytest.raises((ValueError, TypeError), match=said): make()

def test_a_missing_compiler_is_said_plainly(dls, monkeypatch, tmp_path):
    monkeypatch.setattr(speed.sysconfig, 'get_path', lambda name: tmp_path)
    (tmp_path/'Python.h').touch()
    monkeypatch.setenv('CXX', '/nowhere/g++')
    import torch._inductor.cpp_builder as cpp
    def none(): raise RuntimeError('no compiler')
    monkeypatch.setattr(cpp, 'get_cpp_compiler', none)
    with pytest.raises(RuntimeError, match='needs a C\\+\\+ compiler.*aot_eager'): fitted(dls, Compiled())

def test_missing_headers_of_python_are_said_plainly(dls, monkeypatch):
    monkeypatch.setattr(speed.sysconfig, 'get_path', lambda name: '/nowhere')
    with pytest.raises(RuntimeError, match="needs Python's headers.*aot_eager"): fitted(dls, Compiled())

def test_whole_compilation_refuses_checkpoints(dls):
    with pytest.raises(ValueError, match='units must be True beside StageCheckpoint'): fitted(dls, [Compiled(backend='eager'), StageCheckpoint(2)])


# kernels

def test_operators_are_counted_and_views_are_not():
    x = torch.ones(4, 4, requires_grad=True)
    assert count_operators(lambda: x.t()[0].expand(2, 4).detach()) == 0
    assert count_operators(lambda: (x*2).sum().backward()) == 4   # product, sum, expanded gradient times two, and the ones it starts from
    assert count_operators(lambda: None) == 0


# several processes

@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 60), bs=st.integers(1, 7), processes=st.integers(1, 5))
def test_shares_make_up_the_batches_of_one_process(n, bs, processes):
    order, whole = np.random.RandomState(n).permutation(n).tolist(), bs*processes
    shares = [deal(order, bs, processes, r) for r in range(processes)]
    assert {len(s) for s in shares} == {n//whole*bs}
    for t in range(n//whole):
        assert sum((s[t*bs:(t + 1)*bs] for s in shares), []) == order[t*whole:(t + 1)*whole]

def test_alone_nothing_changes(dls, plain, monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    with no_random(0):
        dls.train.rng.seed(0)
        learn = Learner(dls, networks.build(small), CrossEntropyLossFlat(), opt_func=SGD)
        learn.recorder.smooth_loss.beta = 0
        with learn.no_bar(), learn.no_logging(), data_parallel(learn): learn.fit(1, .02)
    np.testing.assert_array_equal([float(l) for l in learn.recorder.losses], plain[1])

def test_every_process_takes_its_own_gpu(dls, plain, monkeypatch):
    "Where the data lie decides, not where the model lies before its first fit"
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    def on(device): return SimpleNamespace(dls=SimpleNamespace(**dict(device=device) if device else {}), model=plain[0].model)
    assert [speed._own_device(on(d)) for d in ('cpu', None, 'cuda:0', torch.device('cuda'))] == [torch.device(d) for d in ('cpu', 'cpu', 'cuda:1', 'cuda:1')]
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(ValueError, match='at most the GPUs of a machine, 2, got one of local rank 2'): speed._own_device(on('cuda'))

def test_missing_accelerate_is_said_plainly(dls, plain, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(ImportError, match='pip install accelerate'):
        with data_parallel(plain[0]): pass

script = '''
import json, sys, torch, fastai.callback.progress
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastai.torch_core import num_distrib, rank_distrib
from resnotes import networks
from resnotes.data import digits
from resnotes.resnet import ResNetConfig
from resnotes.speed import ChannelsLast, StageCheckpoint, data_parallel

torch.set_num_threads(1)
dls, out = digits(bs=64//max(1, num_distrib())), {}
for name, batch_norm, cbs in (('plain', False, []), ('with callbacks', False, [ChannelsLast(), StageCheckpoint(2)]), ('norm', True, [])):
    torch.manual_seed(0)
    dls.train.rng.seed(0)
    model = networks.build(ResNetConfig((2, 2), 4, order='preact', batch_norm=batch_norm, in_channels=1))
    if rank_distrib(): torch.nn.init.zeros_(model.head.linear.weight)   # the first process's weights count
    learn = Learner(dls, model, CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)
    learn.recorder.smooth_loss.beta = 0
    train = dls.train
    with learn.no_bar(), learn.no_logging(), data_parallel(learn): learn.fit(1, .1)
    assert type(learn.model).__name__ == 'ResNet' and learn.dls.train is train
    out[name] = [float(l) for l in learn.recorder.losses], float(learn.recorder.values[-1][1]), [p.sum().item() for p in learn.model.parameters()]
out['processes'] = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
if rank_distrib() == 0: json.dump(out, open(sys.argv[1], 'w'))
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
'''

def test_two_processes_train_as_one(tmp_path):
    pytest.importorskip('accelerate')
    (tmp_path/'run.py').write_text(script)
    env = {k: v for k, v in os.environ.items() if k not in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')} | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    def launch(*how):
        out = tmp_path/'out.json'
        done = subprocess.run([sys.executable, *how, str(tmp_path/'run.py'), str(out)], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())
    one = launch()
    two = launch('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')
    assert (one['processes'], two['processes']) == (1, 2)
    for name in ('plain', 'with callbacks'):
        assert len(one[name][0]) == len(two[name][0]) == 22
        for a, b in zip(two[name], one[name]): np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one['with callbacks'][0], one['plain'][0], rtol=1e-3)
    assert np.abs(np.array(two['norm'][0])/one['norm'][0] - 1).max() > 1e-3   # statistics of half a batch


# norms folded

def trained_norms(model, *size):
    "A model in float64 whose norms' statistics, scales and shifts are none of a fresh model, and images"
    torch.manual_seed(0)
    model = model.double()
    for m in model.modules():
        if not isinstance(m, nn.modules.batchnorm._BatchNorm): continue
        for t, low in ((m.weight, .5), (m.bias, -1), (m.running_mean, -1), (m.running_var, .5)):
            if t is not None: t.data.uniform_(low, low + 2)
    return model.eval(), torch.randn(3, *size, dtype=torch.float64)

def kinds(model): return [type(m) for m in model.modules()]

@pytest.mark.parametrize('make, size, left', [
    (lambda: networks.build('resnet20'), (3, 32, 32), None),
    (lambda: networks.build(ResNetConfig((2, 2), 4, order='preact', in_channels=1)), (1, 32, 32), None),
    (lambda: networks.build('strict_unet48', blocks=(1,)*5), (1, 32, 32), None),
    (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)), (4,), 1),
    (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6)), (4, 5, 5), 1),
    (lambda: nn.Sequential(nn.Conv3d(2, 3, 1, bias=False), nn.BatchNorm3d(3, affine=False)), (2, 2, 2, 2), 0)])
def test_a_folded_net_predicts_the_same(make, size, left):
    model, x = trained_norms(make(), *size)
    before, folded = {k: v.clone() for k, v in model.state_dict().items()}, speed.fold_norms(model)
    with torch.no_grad(): torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    few, many = (sum(issubclass(k, nn.modules.batchnorm._BatchNorm) for k in kinds(m)) for m in (folded, model))
    assert few < many and left in (None, few)
    assert model.state_dict().keys() == before.keys() and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert kinds(speed.fold_norms(folded)) == kinds(folded)

def test_every_norm_of_the_original_order_goes_and_all_but_the_first_of_a_preactivated_unit():
    for name, kept in (('resnet20', 0), ('preact110', 1)):
        model = speed.fold_norms(networks.build(name).eval())
        for unit in model.modules():
            if isinstance(unit, Residual):
                assert sum(isinstance(m, nn.BatchNorm2d) for m in [*unit.before, *unit.branch, *unit.after]) == kept

def test_a_folded_net_is_an_ordinary_one(tmp_path):
    model, x = trained_norms(networks.build('resnet20'), 3, 32, 32)
    x, folded = x.float(), speed.fold_norms(model).float()
    want = folded(x)
    torch.save(folded.state_dict(), tmp_path/'folded')
    again = speed.fold_norms(networks.build('resnet20').eval())
    again.load_state_dict(torch.load(tmp_path/'folded', weights_only=True))
    torch.testing.assert_close(again(x), want)
    torch.testing.assert_close(torch.compile(folded, backend='eager')(x), want, rtol=1e-4, atol=1e-4)
    ordered = folded.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(ordered, want, rtol=1e-3, atol=1e-3)
    with torch.autocast('cpu', torch.bfloat16): assert (folded(x).float() - want).norm() < .05*want.norm()

def test_folding_refuses_what_would_change_a_prediction():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match='evaluation mode'): speed.fold_norms(model)
    model[0].register_forward_hook(lambda m, i, o: 2*o)
    with pytest.raises(ValueError, match='no hooks'): speed.fold_norms(model.eval())
    with pytest.raises(ValueError, match='running statistics'):
        speed.fold_norms(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval())
    plain = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1))
    assert kinds(speed.fold_norms(plain)) == kinds(plain)   # also in training mode: nothing is folded

class NormAndReLU(nn.BatchNorm2d):
    def forward(self, x): return super().forward(x).relu()

class SumOfTwo(nn.Sequential):
    def forward(self, x): return self[0](x) + self[1](self[0](x))

@pytest.mark.parametrize('make, size', [
    (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), NormAndReLU(3)), (2, 5, 5)),
    (lambda: SumOfTwo(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), (3, 5, 5))])
def test_what_computes_in_its_own_way_is_left_unfolded(make, size):
    model, x = trained_norms(make(), *size)
    folded = speed.fold_norms(model)
    assert torch.equal(folded(x), model(x)) and kinds(folded) == kinds(model)

@pytest.mark.parametrize('form', ['grouped', 'concat', 'split'])
def test_paths_in_every_form_predict_the_same_once_folded(form):
    model, x = trained_norms(ResNeXtBlock(8, 2, 4, 8, form=form), 8, 6, 6)
    with torch.no_grad(): torch.testing.assert_close(speed.fold_norms(model)(x), model(x), rtol=1e-10, atol=1e-10)
