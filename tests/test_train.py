"Edge cases of the trainer: tower, runs, tables, what a terminal sees, and runs that are killed"
import hashlib, json, math, os, random, signal, subprocess, sys, warnings, zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper, SGD
from fastcore.basics import partial
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn

import resnotes.train as train
from resnotes.data import cifar10, digits
from resnotes.train import (Resume, ResidualTower, bars_visible, compare_inits, describe, init_run, init_tower,
                            random_state, set_random_state, step_ratio, summarise, visible_progress)

small = dict(depth=2, channels=4)


@pytest.fixture(scope='module')
def dls(): return digits(bs=256)


# the tower

@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 4), channels=st.integers(1, 5), kernel=st.integers(1, 8), stride=st.integers(1, 4),
       side=st.integers(1, 9), bs=st.integers(1, 3), bn=st.booleans())
def test_tower_keeps_shapes(depth, channels, kernel, stride, side, bs, bn):
    model = ResidualTower(depth, channels, kernel, in_channels=2, n_classes=3, stride=stride, batch_norm=bn).eval()
    x = torch.randn(bs, 2, side, side)
    assert model.stem(x).shape == (bs, channels, *2*[math.ceil(side/stride)])
    assert model.blocks(model.stem(x)).shape == model.stem(x).shape
    assert model(x).shape == (bs, 3)

@pytest.mark.parametrize('bn', [False, True])
def test_tower_is_blind_to_memory_layout(bn):
    model = init_tower(ResidualTower(3, in_channels=3, batch_norm=bn)).eval()
    x = torch.randn(2, 3, 8, 8)
    for view in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(model(view), model(x))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_tower_in_other_precisions(dtype):
    model, x = init_tower(ResidualTower(3)), torch.randn(2, 1, 8, 8)
    want = model(x)
    torch.testing.assert_close(model.to(dtype)(x.to(dtype)).float(), want, rtol=.1, atol=.1)

def test_blocks_add_to_what_enters():
    block = init_tower(ResidualTower(1, channels=4), 'he').blocks[0]
    x = torch.randn(8, 4, 3, 3)
    assert (block(x) >= x).all() and (block(x) > x).any()

@pytest.mark.parametrize('name', ['depth', 'channels', 'kernel', 'in_channels', 'n_classes', 'stride'])
@pytest.mark.parametrize('value', [0, -1, 1.5, True])
def test_tower_refuses(name, value):
    with pytest.raises((ValueError, TypeError), match=f'^{name} must'): ResidualTower(**{'depth': 1, name: value})

def test_inits_differ_by_one_factor_in_the_blocks_alone():
    he, scaled = (init_tower(ResidualTower(5), i, torch.Generator().manual_seed(0)) for i in ('he', 'depth_scaled'))
    for (name, a), b in zip(he.named_parameters(), scaled.parameters()):
        torch.testing.assert_close(a, b*math.sqrt(2*5) if name.startswith('blocks') else b)
        if name.endswith('bias'): assert not a.any()

def test_init_starts_batch_norm_as_the_identity():
    model = init_tower(ResidualTower(2, batch_norm=True))
    assert all((b.branch.norm1.weight == 1).all() for b in model.blocks)


# runs

def test_a_run_is_a_function_of_its_settings(dls):
    torch.manual_seed(0); a = init_run(dls, 'depth_scaled', seed=4, epochs=1, **small)
    torch.manual_seed(1); next(iter(dls.train)); b = init_run(dls, 'depth_scaled', seed=4, epochs=1, **small)
    c = init_run(dls, 'depth_scaled', seed=5, epochs=1, **small)
    assert a['step_loss'] == b['step_loss'] != c['step_loss'] and a['accuracy'] == b['accuracy']

def test_a_run_leaves_the_random_state_alone(dls):
    torch.manual_seed(0); want = torch.rand(1)
    torch.manual_seed(0); init_run(dls, 'he', epochs=1, **small)
    assert torch.rand(1) == want

def test_a_run_that_diverges_is_recorded_to_the_end(dls):
    run = init_run(dls, 'he', epochs=2, lr=1e30, **small)
    assert len(run['valid_loss']) == len(run['accuracy']) == 2 and len(run['step_loss']) == 2*len(dls.train)
    assert not math.isfinite(run['valid_loss'][-1]) and run['accuracy'][-1] < .2
    assert run['step_loss'][0] < 1e3  # recorded as it was, not averaged with what came later

@pytest.mark.parametrize('kw, said', [(dict(epochs=0), 'epochs'), (dict(lr=0.), 'lr'), (dict(lr=math.nan), 'lr'), (dict(seed=-1), 'seed'),
                                      (dict(init='xavier'), 'init'), (dict(depth=0), 'depth')])
def test_a_run_refuses(dls, kw, said):
    with pytest.raises(ValueError, match=f'^{said} must'): init_run(dls, **({'init': 'he', **small} | kw))

def test_compare_has_one_row_per_run(dls):
    runs = compare_inits(seeds=(1, 7), epochs=2, dls=dls, **small)
    assert set(zip(runs.init, runs.seed)) == {(i, s) for i in ('he', 'depth_scaled') for s in (1, 7)}
    assert (runs.final_accuracy == [a[-1] for a in runs.accuracy]).all()
    assert (runs.best_valid_loss == [min(v) for v in runs.valid_loss]).all()
    assert (runs.seconds > 0).all() and (runs.n_classes == 10).all() and (runs.depth == 2).all()

def test_compare_takes_one_name_and_one_seed(dls):
    assert len(compare_inits(seeds=3, inits='he', epochs=1, dls=dls, **small)) == 1

@pytest.mark.parametrize('kw, said', [(dict(seeds=()), 'seeds'), (dict(inits=()), 'inits'), (dict(inits=('he', 'zero')), 'zero'), (dict(depth=0), 'depth')])
def test_compare_refuses_before_it_trains(dls, kw, said):
    with pytest.raises(ValueError, match=said): compare_inits(**({'dls': dls, **small} | kw))


# tables

@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=9), level=st.floats(.5, .99))
def test_interval_is_students(values, level):
    runs = pd.DataFrame({'init': 'he', 'final_accuracy': values})
    mean, half = summarise(runs, level=level).loc['he', ['mean', 'half_width']]
    if np.std(values) > 1e-6:
        ci = stats.ttest_1samp(values, 0).confidence_interval(level)
        assert np.allclose([mean - half, mean + half], [ci.low, ci.high], atol=1e-6)

def test_summary_edges():
    runs = pd.DataFrame({'init': ['he'], 'final_accuracy': [.3]})
    assert math.isnan(summarise(runs).half_width['he'])
    with pytest.raises(ValueError, match='of must be one of'): summarise(runs, of='beauty')
    with pytest.raises(ValueError, match='level must'): summarise(runs, level=1.)

@pytest.mark.parametrize('acc, said', [([.1, .1, .1, .9, .9, .91], 'depth_scaled is better than he'), ([.9, .91, .9, .1, .1, .1], 'he is better than depth_scaled'),
                                       ([.1, .9, .5, .2, .8, .5], 'no difference is shown')])
def test_the_sentence_follows_the_numbers(acc, said):
    runs = pd.DataFrame(dict(init=['he']*3 + ['depth_scaled']*3, final_accuracy=acc, best_valid_loss=1., depth=60, epochs=4, n_classes=10))
    assert said in describe(runs)
    assert 'One seed has no interval' in describe(runs.iloc[[0, 3]])

def test_step_ratio_sees_the_deeper_one():
    x, y = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    assert step_ratio(ResidualTower(24), ResidualTower(1), x, y, pairs=3) > 1 > step_ratio(ResidualTower(1), ResidualTower(24), x, y, pairs=3)
    with pytest.raises(ValueError, match='pairs'): step_ratio(ResidualTower(1), ResidualTower(1), x, y, pairs=0)


@pytest.mark.skipif('RESNOTES_DATA' not in os.environ, reason='RESNOTES_DATA names no folder')
def test_cifar_trains_at_tiny_size():
    run = init_run(cifar10(n=100, bs=20), 'depth_scaled', epochs=1, depth=2, kernel=8, stride=4)
    assert run['in_channels'] == 3 and len(run['step_loss']) == 5 and math.isfinite(run['valid_loss'][0])


# what is seen

def test_progress_bar_only_where_it_is_seen(dls, monkeypatch, capsys):
    learn = train.Learner(dls, ResidualTower(1), loss_func=train.CrossEntropyLossFlat())
    assert not bars_visible()
    with visible_progress(learn): learn.fit(1)
    assert capsys.readouterr().out == ''
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert bars_visible()
    with visible_progress(learn): learn.fit(1)
    assert 'train_loss' in capsys.readouterr().out

def test_report_into_a_pipe_is_plain_and_imports_no_torchvision():
    code = ("import sys; from resnotes.train import digits_report; "
            "digits_report(depth=2, epochs=1, seeds=(0,1), channels=4); assert 'torchvision' not in sys.modules")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert '\r' not in out.stdout + out.stderr and not out.stderr
    assert 'depth_scaled' in out.stdout and 'interval' in out.stdout


# killed and resumed

class Noisy(nn.Module):
    "Draws from torch's generator in training: dropout on the image (as augmentation would) and before the head"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(.2), ResidualTower(**small, batch_norm=True), nn.Dropout(.5), nn.Linear(10, 10))
    def forward(self, x): return self.net(x)

class AllGenerators(Callback):
    "Draws from Python's and numpy's generators in every step, and adds what it draws to the image"
    def before_batch(self):
        if self.training: self.learn.xb = (self.x + random.random() + np.random.rand() + torch.rand(()),)

class Cut(Callback):
    "Ends a run in the middle of an epoch, in training or in validation, or in the middle of writing"
    def __init__(self, epoch, batch, training=True): self.when = epoch, batch, training
    def after_batch(self):
        if (self.epoch, self.iter, self.training) == self.when: raise KeyboardInterrupt

class Memory(Callback):
    "Remembers what it saw"
    def __init__(self): self.seen = []
    def after_epoch(self): self.seen.append(float(self.recorder.losses[-1]))
    def state_dict(self): return {'seen': self.seen}
    def load_state_dict(self, state): self.seen = state['seen']

images = [(torch.tensor(x/16 - .3).float()[None], y) for x, y in zip(load_digits().images[:400], load_digits().target)]

def noisy_learner(seed, *cbs, opt=SGD, **kw):
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    dls = DataLoaders(*(DataLoader(images[part], bs=64, shuffle=shuffle) for part, shuffle in ((slice(300), True), (slice(300, 400), False))))
    return Learner(dls, Noisy(), loss_func=train.CrossEntropyLossFlat(), metrics=train.accuracy, opt_func=opt, cbs=[AllGenerators, *cbs], **kw)

def end(learn):
    "All that a run leaves behind"
    r = learn.recorder
    return dict(model={k: v.tolist() for k, v in learn.model.state_dict().items()}, values=[list(v) for v in r.values], iters=list(r.iters),
                losses=[float(l) for l in r.losses], lrs=[float(l) for l in r.lrs], final=list(learn.final_record),
                hps={k: list(map(float, v)) for k, v in getattr(r, 'hps', {}).items()}, train_iter=learn.train_iter,
                momenta=[{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in s.items()} for _, _, s, _ in learn.opt.all_params()] if isinstance(learn.opt, train.Optimizer) else None,
                draws=(random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()))

def fit(learn, how, n=3):
    "Fit, and say at once what that leaves behind"
    with learn.no_bar(), learn.no_logging(): getattr(learn, how)(n, .05)
    return end(learn)

@pytest.mark.parametrize('how', ['fit', 'fit_one_cycle'])
@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), Adam, partial(OptimWrapper, opt=torch.optim.SGD)])
@pytest.mark.parametrize('cut', [(0, 1, True), (1, 3, True), (2, 0, False)])
def test_a_resumed_run_equals_one_left_alone(tmp_path, how, opt, cut):
    left = noisy_learner(0, Memory, opt=opt)
    want = fit(left, how)
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Memory, Resume(tmp_path), Cut(*cut), opt=opt), how)
    again = noisy_learner(0, Memory, Resume(tmp_path), opt=opt)
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    with torch.no_grad(): [p.zero_() for p in again.model.parameters()]
    assert fit(again, how) == want
    assert again.resume.done == cut[0] and again.memory.seen == left.memory.seen

def test_a_checkpointed_run_equals_one_without(tmp_path):
    assert fit(noisy_learner(0), 'fit') == fit(noisy_learner(0, Resume(tmp_path)), 'fit')

def test_a_run_may_be_cut_many_times_and_done_runs_train_no_more(tmp_path):
    want = fit(noisy_learner(0), 'fit_one_cycle')
    for cut in ((0, 0), (0, 2), (1, 0), (1, 4), (2, 4)):
        with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Resume(tmp_path), Cut(*cut)), 'fit_one_cycle')
    assert fit(noisy_learner(0, Resume(tmp_path)), 'fit_one_cycle') == want
    done = noisy_learner(0, Resume(tmp_path), Cut(2, 0))
    assert fit(done, 'fit_one_cycle') == want
    done.resume.remove(), done.resume.remove()
    assert not list(tmp_path.iterdir())

def test_the_same_learner_goes_on_after_an_interrupt(tmp_path):
    want = fit(noisy_learner(0), 'fit_one_cycle')
    learn = noisy_learner(0, Resume(tmp_path), Cut(1, 2))
    with pytest.raises(KeyboardInterrupt): fit(learn, 'fit_one_cycle')
    learn.remove_cb(Cut)
    assert fit(learn, 'fit_one_cycle') == want
    with pytest.raises(ValueError, match='folder must serve one fit'): fit(learn, 'fit_one_cycle')

def test_validation_and_prediction_leave_the_checkpoint_alone(tmp_path):
    learn = noisy_learner(0, Resume(tmp_path))
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        assert not learn.resume.file.exists()
        learn.fit(1, .05)
        stamp, want = learn.resume.file.stat().st_mtime_ns, learn.model.net[3].weight.clone()
        learn.validate(), learn.get_preds()
    assert learn.resume.file.stat().st_mtime_ns == stamp and torch.equal(learn.model.net[3].weight, want)

def test_trackers_remember_their_best(tmp_path):
    stop = lambda: EarlyStoppingCallback(monitor='valid_loss', min_delta=10., patience=2)   # never better by 10: stops after epochs 1, 2
    a = noisy_learner(0, stop()); fit(a, 'fit', 5)
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, stop(), Resume(tmp_path), Cut(2, 1)), 'fit', 5)
    b = noisy_learner(1, stop(), Resume(tmp_path)); fit(b, 'fit', 5)
    assert len(a.recorder.values) == len(b.recorder.values) == 3 and a.early_stopping.best == b.early_stopping.best

@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'text'])
def test_a_damaged_checkpoint_is_ignored_aloud(tmp_path, damage):
    want = fit(noisy_learner(0), 'fit')
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Resume(tmp_path), Cut(2, 1)), 'fit')
    file = tmp_path/'resume.pt'
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as z: at = max(z.infolist(), key=lambda i: i.file_size)
    if damage == 'flip': data[at.header_offset + 200 + at.file_size//2] ^= 1
    file.write_bytes({'cut': data[:len(data)//2], 'flip': data, 'empty': b'', 'text': b'no checkpoint'}[damage])
    again = noisy_learner(0, Resume(tmp_path))
    with pytest.warns(UserWarning, match='resume.pt is damaged and is ignored'): assert fit(again, 'fit') == want

class Bomb:
    def __reduce__(self): return os.mkdir, ('exploded',)

@pytest.mark.parametrize('what', [Bomb(), [1, 2], {'epoch': 3}])
def test_a_foreign_file_is_refused_and_runs_no_code(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    torch.save(what, tmp_path/'resume.pt')
    with pytest.raises(ValueError, match='is no checkpoint of `Resume`'): fit(noisy_learner(0, Resume(tmp_path)), 'fit')
    assert not (tmp_path/'exploded').exists()

def test_another_run_s_checkpoint_is_refused(tmp_path):
    fit(noisy_learner(0, Resume(tmp_path, dict(arm='a'))), 'fit')
    same = dict(folder=tmp_path, settings=dict(arm='a'))
    def refused(said, *cbs, how='fit', n=3, lr=.05, wd=None, **kw):
        learn = noisy_learner(0, *cbs, **kw)
        with pytest.raises(ValueError, match=said), learn.no_bar(), learn.no_logging(): getattr(learn, how)(n, lr, wd=wd)
        assert (tmp_path/'resume.pt').exists()
    refused("settings.arm was 'a' there and is 'b' here", Resume(tmp_path, dict(arm='b')))
    refused('epochs was 3 there and is 4 here', Resume(**same), n=4)
    refused('schedule.lr', Resume(**same), how='fit_one_cycle')
    refused('optimiser', Resume(**same), lr=.06)
    refused('optimiser', Resume(**same), wd=.5)
    refused('optimiser', Resume(**same), opt=Adam)
    refused('callbacks', Resume(**same), Memory)

def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(TypeError, match='plain numbers, text and tensors, got object'): fit(noisy_learner(0, Resume(tmp_path, dict(x=object()))), 'fit')

def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    class FullDisk(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch == 1: monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError): fit(noisy_learner(0, Resume(tmp_path), FullDisk), 'fit')
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ['resume.pt']
    again = noisy_learner(0, Resume(tmp_path))
    assert fit(again, 'fit') == fit(noisy_learner(0), 'fit') and again.resume.done == 1

def test_random_state_goes_through_a_file(tmp_path):
    draws = lambda: (random.gauss(0, 1), np.random.randn(), torch.randn(3).tolist())
    draws()
    torch.save(random_state(), tmp_path/'r'); want = draws()
    set_random_state(torch.load(tmp_path/'r', weights_only=True))
    assert draws() == want

killed = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
from test_train import *
class Kill(Callback):
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == (1, 3): os.kill(os.getpid(), signal.SIGKILL)
learn = noisy_learner(0, Resume(sys.argv[1]), *[Kill]*(sys.argv[2] == 'kill'))
e = fit(learn, sys.argv[3])
print(learn.resume.done, hashlib.sha256(json.dumps(e).encode()).hexdigest())
"""

def test_a_killed_process_goes_on_in_another(tmp_path):
    def run(kill): return subprocess.run([sys.executable, '-c', killed, str(tmp_path), kill, 'fit_one_cycle', os.path.dirname(__file__)], capture_output=True, text=True)
    first, second = run('kill'), run('live')
    assert first.returncode == -signal.SIGKILL and (tmp_path/'resume.pt').exists()
    want = hashlib.sha256(json.dumps(fit(noisy_learner(0), 'fit_one_cycle')).encode()).hexdigest()
    assert second.stdout.split() == ['1', want], second.stderr
