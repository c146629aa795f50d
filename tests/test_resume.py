"Runs that are killed, and go on to the same bits"
import hashlib, json, math, os, random, signal, subprocess, sys, warnings, zipfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import ParamScheduler, SchedLin, SchedNo, combine_scheds
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam, Optimizer, OptimWrapper, SGD
from sklearn.datasets import load_digits
from torch import nn

import resnotes.resume as resume
from resnotes.blocks import StrictBlock
from resnotes.callbacks import Percentiles, SignalRecorder, Watch
from resnotes.learner import classifier, segmenter
from resnotes.losses import IoULoss
from resnotes.networks import build
from resnotes.resume import Resume, restore, snapshot
from resnotes.salt import salt

images = [(torch.tensor(x/16 - .3).float()[None], y)
          for x, y in zip(load_digits().images[:400], load_digits().target)]

# killed and resumed

def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)

class Noisy(nn.Module):
    "Draws from torch's generator in training: dropout on the image (as augmentation would) and before the head"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(.2), build('taki_tower', depth=2, width=4, batch_norm=True), nn.Dropout(.5), nn.Linear(10, 10))
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

def noisy_learner(seed, *cbs, opt=SGD, **kw):
    seed_all(seed)
    dls = DataLoaders(*(DataLoader(images[part], bs=64, shuffle=shuffle) for part, shuffle in ((slice(300), True), (slice(300, 400), False))))
    return Learner(dls, Noisy(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, opt_func=opt, cbs=[AllGenerators, *cbs], **kw)

def end(learn):
    "All that a run leaves behind"
    r = learn.recorder
    return dict(model={k: v.tolist() for k, v in learn.model.state_dict().items()}, values=[list(v) for v in r.values], iters=list(r.iters),
                losses=[float(l) for l in r.losses], lrs=[float(l) for l in r.lrs], final=list(learn.final_record),
                hps={k: list(map(float, v)) for k, v in getattr(r, 'hps', {}).items()}, train_iter=learn.train_iter,
                momenta=[{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in s.items()} for _, _, s, _ in learn.opt.all_params()] if isinstance(learn.opt, Optimizer) else None,
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
    seed_all(99)
    with torch.no_grad():
        for p in again.model.parameters(): p.zero_()
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
    for _ in range(2): done.resume.remove()
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
        learn.validate()
        learn.get_preds()
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

def test_augmentation_is_resumed(tmp_path):
    def run(*cbs, seed=0):
        seed_all(seed)
        dls = salt(n=30, bs=8, size=16, augment=True, cutout=4)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1))
        learn = segmenter(dls, net, cbs=cbs)
        return fit(learn, 'fit_one_cycle')
    want = run()
    with pytest.raises(KeyboardInterrupt): run(Resume(tmp_path), Cut(1, 1))
    assert run(Resume(tmp_path), seed=5) == want

class Half(MixedPrecision):
    "As on a GPU, with a scale that is too large at first and grows after four good steps"
    def before_fit(self):
        self.autocast, self.scales = torch.autocast('cpu', torch.float16), []
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**26, growth_interval=4)

class NotedScales(Memory):
    "Remembers the scale at each step"
    def after_batch(self):
        if self.training: self.seen.append(self.learn.scaler.get_scale())
    def after_epoch(self): pass

def test_half_precision_is_resumed_with_its_scale(tmp_path):
    left = noisy_learner(0, Half, NotedScales)
    want = fit(left, 'fit')
    scales = left.noted_scales.seen
    assert (np.diff(scales) < 0).any() and (np.diff(scales) > 0).any()   # steps were left out, and the scale grew again
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Half, NotedScales, Resume(tmp_path), Cut(2, 1)), 'fit')
    again = noisy_learner(1, Half, NotedScales, Resume(tmp_path))
    assert fit(again, 'fit') == want and again.noted_scales.seen == scales
    with pytest.raises(ValueError, match="callbacks was .*'half'"): fit(noisy_learner(0, NotedScales, Resume(tmp_path)), 'fit')

def test_bfloat16_has_no_scale_to_keep(tmp_path):
    with warnings.catch_warnings(action='ignore', category=UserWarning):   # later versions of PyTorch warn of autocast for a GPU that is not there
        fit(noisy_learner(0, MixedPrecision('bf16'), Resume(tmp_path)), 'fit')

def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, 'num_distrib', lambda: 2)
    with pytest.raises(ValueError, match='Resume must run in one process, got 2'): fit(noisy_learner(0, Resume(tmp_path)), 'fit')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('processes, refused', [(0, False), (1, False), (2, True)])   # fastai counts 0 where it was told of none
def test_one_process_is_enough(tmp_path, monkeypatch, processes, refused):
    def further(*args): raise KeyboardInterrupt
    for name, f in dict(num_distrib=lambda: processes, fitting=lambda learn: True, _about=further).items(): monkeypatch.setattr(resume, name, f)
    cb = Resume(tmp_path)
    cb.learn = SimpleNamespace()
    with pytest.raises(ValueError if refused else KeyboardInterrupt): cb.before_fit()

@pytest.mark.parametrize('done, said', [(-1, 'but -1 are done'), (0, ''), (4, ''), (5, 'but 5 are done')])
def test_a_run_may_get_another_length_that_is_not_passed_already(done, said):
    state = dict(about=dict(epochs=4, batches=[2]), done=done)
    assert resume._other_run(SimpleNamespace(cbs=[]), state, dict(epochs=6, batches=[2])).endswith(said)
    assert bool(resume._other_run(SimpleNamespace(cbs=[]), state, dict(epochs=6, batches=[2]))) == bool(said)

def test_a_schedule_is_known_by_five_points_and_its_end(tmp_path):
    fit(noisy_learner(0, ParamScheduler({'lr': SchedLin(.01, .02)}), Resume(tmp_path)), 'fit')
    assert resume._read_whole(tmp_path/'resume.pt')['about']['schedule'] == dict(lr=pytest.approx([.01, .012, .014, .017, .02]))

def test_the_first_difference_has_a_name_and_two_values():
    assert resume._first_difference(dict(a=1, b=dict(c=2)), dict(a=1, b=dict(c=2))) is None
    assert resume._first_difference(dict(a=1, b=dict(c=2)), dict(a=1, b=dict(c=3))) == ('b.c', 2, 3)
    assert resume._first_difference(dict(a=dict(c=2)), dict(a=3)) == ('a', dict(c=2), 3) and resume._first_difference({}, dict(a=3)) == ('a', None, 3)

def test_a_run_that_ended_in_its_first_epoch_begins_anew(tmp_path, monkeypatch):
    def interrupt(self): raise KeyboardInterrupt
    monkeypatch.setattr(Learner, '_do_epoch', interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Resume(tmp_path)), 'fit')
        assert resume._read_whole(tmp_path/'resume.pt')['done'] == 0

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
    refused('epochs was 3 there and is 2 here, but 3 are done', Resume(**same), n=2)
    refused("settings.arm was 'a' there", Resume(tmp_path, dict(arm='b')), n=4)
    refused('schedule.lr', Resume(**same), how='fit_one_cycle', n=4)
    refused('optimizer', Resume(**same), lr=.06, n=4)
    refused('schedule.lr', Resume(**same), how='fit_one_cycle')
    refused('optimizer', Resume(**same), lr=.06)
    refused('optimizer', Resume(**same), wd=.5)
    refused('optimizer', Resume(**same), opt=Adam)
    refused('callbacks', Resume(**same), Memory)

def fit_warm_up(learn, n, lr, cut=.5):
    "The rate rises over half of the epochs and stays"
    sched = ParamScheduler({'lr': combine_scheds([cut, 1 - cut], [SchedLin(lr/10, lr), SchedNo(lr, lr)])})
    learn.fit(n, lr, cbs=sched)

def fit_held(learn, n, lr):
    "Constant, written as a schedule"
    learn.fit(n, lr, cbs=ParamScheduler({'lr': SchedNo(lr, lr), 'mom': SchedNo(.8, .8)}))

def fit_flat_cos(learn, n, lr): learn.fit_flat_cos(n, lr, pct_start=.75)

def run_of(learn, how, n):
    with learn.no_bar(), learn.no_logging(): how(learn, n, .05)
    return end(learn)

@pytest.mark.parametrize('how', [Learner.fit, fit_held])
@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), Adam])
@pytest.mark.parametrize('lengths', [(2, 5), (1, 2, 4), (3, 4)])
def test_more_epochs_after_a_finished_run_are_those_of_a_longer_one(tmp_path, how, opt, lengths):
    left = noisy_learner(0, Memory, opt=opt)
    want = run_of(left, how, lengths[-1])
    for i, n in enumerate(lengths):
        learn = noisy_learner(i, Memory, Resume(tmp_path), opt=opt)   # another start, but for the first
        got = run_of(learn, how, n)
        assert learn.resume.done == ([0, *lengths][i]) and len(got['values']) == n
    assert got == want and learn.memory.seen == left.memory.seen
    assert run_of(noisy_learner(9, Memory, Resume(tmp_path), opt=opt), how, lengths[-1]) == want   # the length is kept

def test_a_run_that_was_cut_may_become_longer_or_shorter(tmp_path):
    for n in (3, 2, 6):
        folder = tmp_path/str(n)
        with pytest.raises(KeyboardInterrupt): run_of(noisy_learner(0, Resume(folder), Cut(2, 1)), Learner.fit, 4)
        assert run_of(noisy_learner(1, Resume(folder)), Learner.fit, n) == run_of(noisy_learner(0), Learner.fit, n)

def test_a_schedule_that_is_still_flat_may_become_longer(tmp_path):
    with pytest.raises(KeyboardInterrupt): run_of(noisy_learner(0, Resume(tmp_path), Cut(3, 1)), fit_flat_cos, 4)
    assert run_of(noisy_learner(1, Resume(tmp_path)), fit_flat_cos, 8) == run_of(noisy_learner(0), fit_flat_cos, 8)

@pytest.mark.parametrize('how, step', [(Learner.fit_one_cycle, 1), (fit_warm_up, 1), (fit_flat_cos, 12)])
def test_a_schedule_that_looks_to_the_end_takes_no_more_epochs(tmp_path, how, step):
    run_of(noisy_learner(0, Resume(tmp_path)), how, 3)
    before = (tmp_path/'resume.pt').read_bytes()
    with pytest.raises(ValueError, match=f'resume.pt is from another run: epochs was 3 there and is 5 here, but lr at step {step} depends on it; delete it or'):
        run_of(noisy_learner(0, Resume(tmp_path)), how, 5)
    assert (tmp_path/'resume.pt').read_bytes() == before

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

killed = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
from test_resume import *
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


# what callbacks noted

def quick(*cbs, epochs=2):
    "A net with a block that is never called"
    torch.manual_seed(0)
    random.seed(0)
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), StrictBlock(4), StrictBlock(4),
                                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
            self.spare = StrictBlock(4)
        def forward(self, x): return self.net(x)
    parts = (slice(300), True), (slice(300, 400), False)
    dls = DataLoaders(*(DataLoader(images[part], bs=64, shuffle=shuffle) for part, shuffle in parts))
    dls.c = 10
    learn = classifier(dls, Unused(), .05, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn

def test_what_the_recorder_kept_is_plain_and_comes_back(tmp_path):
    whole = quick(SignalRecorder(every=2), Watch())
    with pytest.raises(KeyboardInterrupt): quick(SignalRecorder(every=2), Watch(), Resume(tmp_path), Cut(1, 3))
    again = quick(SignalRecorder(every=2), Watch(), Resume(tmp_path))
    record = json.loads(json.dumps(again.signal_recorder.record(), allow_nan=False))
    assert record['steps'] == [0, 2, 4, 6, 8] and record['gains'][0][2] is None
    assert record['blocks'] == ['net.1', 'net.2', 'spare']
    assert len(whole.signal_recorder.shares()) == 3
    assert record == json.loads(json.dumps(whole.signal_recorder.record()))
    assert again.watch.record() == whole.watch.record()

def test_two_callbacks_of_one_class_are_both_remembered(tmp_path):
    def both(): return Percentiles('net.1.branch.relu1'), Percentiles('net.2.branch.relu1', every=2)
    whole, cut, again = both(), both(), both()
    quick(*whole)
    with pytest.raises(KeyboardInterrupt): quick(*cut, Resume(tmp_path), Cut(1, 3))
    quick(*again, Resume(tmp_path))
    assert [cb.record() for cb in again] == [cb.record() for cb in whole] and [len(cb.steps) for cb in again] == [10, 5]

def tampered(change, state):
    "`state` with one entry changed: a path of keys, and the new value"
    *path, last = change[0]
    place = state
    for key in path: place = place[key]
    place[last] = change[1]
    return state

@pytest.mark.parametrize('change', [(('done',), -3), (('done',), 99), (('done',), 'two'), (('model',), {}), (('opt',), 3), (('random',), {}), (('callbacks',), {'nobody': {}}),
                                    (('callbacks',), {'remove': {'x': 1}}), (('train_iter',), [1]), (('smooth',), None), (('loaders',), [3, 4])], ids=str)
def test_a_tampered_checkpoint_is_refused_by_name_or_changes_nothing_else(tmp_path, change):
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Resume(tmp_path), Cut(1, 3)), 'fit')
    torch.save(tampered(change, torch.load(tmp_path/'resume.pt', weights_only=True)), tmp_path/'resume.pt')
    learn = noisy_learner(0, Resume(tmp_path))
    try: fit(learn, 'fit')
    except ValueError as e: assert str(tmp_path/'resume.pt') in str(e)
    else: assert change[0] in (('train_iter',), ('smooth',))

def test_only_what_was_remembered_is_set(tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Resume(tmp_path), Cut(1, 3)), 'fit')
    state = torch.load(tmp_path/'resume.pt', weights_only=True)
    state['callbacks']['recorder']['run'] = False
    torch.save(state, tmp_path/'resume.pt')
    learn = noisy_learner(0, Resume(tmp_path))
    fit(learn, 'fit')
    assert learn.recorder.run and len(learn.recorder.values) == 3   # one per epoch

def test_a_refusal_does_not_advise_to_load_anyway(tmp_path):
    torch.save(dict(model=object()), tmp_path/'resume.pt')
    with pytest.raises(ValueError, match='is not loaded, for loading could run it') as e: fit(noisy_learner(0, Resume(tmp_path)), 'fit')
    assert 'weights_only' not in str(e.value)


# snapshots

def test_a_snapshot_is_read_back_whole():
    "Whatever happened in between, the next fit is the one that followed the snapshot"
    learn = noisy_learner(0, Memory, opt=partial(SGD, mom=.9))
    fit(learn, 'fit', 1)
    kept = json.loads(json.dumps(snapshot(learn), default=torch.Tensor.tolist))
    before = torch.load(saved(snapshot(learn)), weights_only=True)
    want = fit(learn, 'fit_one_cycle', 2)
    fit(learn, 'fit', 1)
    restore(learn, before)
    assert json.loads(json.dumps(snapshot(learn), default=torch.Tensor.tolist)) == kept
    assert fit(learn, 'fit_one_cycle', 2) == want

def saved(state):
    import io
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file

@pytest.mark.parametrize('loss, named', [(IoULoss(.5), "IoULoss(eps=0.5, over='batch')"), (CrossEntropyLossFlat(), 'FlattenedLoss of CrossEntropyLoss()'),
                                         (nn.functional.cross_entropy, 'cross_entropy'), (partial(nn.functional.cross_entropy), 'partial')])
def test_a_run_is_known_by_its_loss_and_by_the_batches_it_learns_from(loss, named):
    dls = DataLoaders(DataLoader(images[:30], bs=8), DataLoader(images[30:40], bs=5))
    learn = Learner(dls, nn.Conv2d(1, 2, 3), loss_func=loss, opt_func=SGD)
    learn.create_opt()
    learn.n_epoch = 7
    about = resume._about(learn, dict(arm='a'))
    assert about['loss'] == named and about['batch_size'] == 8 and about['batches'] == [4, 2] and about['epochs'] == 7 and about['settings'] == dict(arm='a')
    assert about['model'] == dict(weight='torch.float32 [2, 1, 3, 3]', bias='torch.float32 [2]')
