"Recorders, watches and the audit at the start: what they see, and that they change nothing"
import copy, json, math, os, random, subprocess, sys
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from sklearn.datasets import load_digits
from torch import nn

from resnotes.blocks import Residual, StrictBlock
from resnotes.callbacks import Additions, AuditAtStart, EvenGradients, HoldScale, Lesions, Percentiles, SignalRecorder, Watch, fitting
from resnotes.learner import classifier
from resnotes.signal import measure
from resnotes.speed import StageCheckpoint

images = [(torch.tensor(x/16 - .3).float()[None], y)
          for x, y in zip(load_digits().images[:400], load_digits().target)]

# recording and watching

def small_net(): return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), StrictBlock(4), StrictBlock(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def quick(model, *cbs, epochs=2, **kw):
    torch.manual_seed(0)
    random.seed(0)
    dls = DataLoaders(*(DataLoader(images[part], bs=64, shuffle=shuffle) for part, shuffle in ((slice(300), True), (slice(300, 400), False))))
    dls.c = 10
    learn = classifier(dls, model, .05, cbs=cbs, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn

def test_recording_changes_nothing_and_leaves_no_hook():
    nets = []
    for cbs in ((), (SignalRecorder(every=1), Watch())):
        torch.manual_seed(1); nets.append(small_net()); quick(nets[-1], *cbs)
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values()): assert torch.equal(a, b)
    assert not any(m._forward_hooks for m in nets[1].modules())

def test_recorder_sees_what_measure_sees():
    torch.manual_seed(1); model = small_net()
    fresh = [p.detach().clone() for p in model.state_dict().values()]
    class FirstBatch(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 0: self.learn.first = self.x.clone(), self.y.clone()
    learn = quick(model, SignalRecorder(every=3), FirstBatch, epochs=1)
    for p, old in zip(model.state_dict().values(), fresh): p.copy_(old)
    x, y = learn.first
    rows = measure(model.train(), x, layers=Residual, loss=lambda out: nn.functional.cross_entropy(out, y))
    r = learn.signal_recorder
    assert r.steps == [0, 3] and r.names == ['1', '2']
    assert r.signals[0] == pytest.approx([o.forward for o in rows], rel=1e-5)
    assert r.gradients[0] == pytest.approx([o.gradient for o in rows], rel=1e-4)
    with torch.no_grad():
        z = model[0](x)
        gains = []
        for block in (model[1], model[2]):
            out = block(z)
            gains.append(((out - z).transpose(0, 1).flatten(1).var(1, correction=0).mean()/z.transpose(0, 1).flatten(1).var(1, correction=0).mean()).sqrt().item())
            z = out
    assert r.gains[0] == pytest.approx(gains, rel=1e-4)
    assert sum(r.shares(0)) == pytest.approx(1) and len(r.shares()) == 3

def test_shares_are_those_of_the_last_sample_unless_told():
    r = quick(small_net(), SignalRecorder(every=1), epochs=1).signal_recorder
    assert len(r.steps) == 5 == len({*map(tuple, map(r.shares, range(5)))}) and r.shares() == r.shares(4)

def test_a_recorder_needs_something_to_record():
    with pytest.raises(ValueError, match='layers must be what the model holds'): quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SignalRecorder())
    with pytest.raises(ValueError, match='every must'): SignalRecorder(every=0)
    assert SignalRecorder().every == 50
    with pytest.raises(ValueError, match='growth must'): EvenGradients(growth=101)
    with pytest.raises(ValueError, match='growth must'): EvenGradients(growth=.009)

def test_validation_keeps_what_was_recorded():
    learn = quick(small_net(), SignalRecorder(every=2), Watch())
    steps, messages = list(learn.signal_recorder.steps), learn.watch.messages
    with learn.no_bar():
        learn.validate()
        learn.get_preds()
    assert learn.signal_recorder.steps == steps == [0, 2, 4, 6, 8] and learn.watch.messages is messages

class Poison(Callback):
    "Multiplies the loss of one step"
    order = -1
    def __init__(self, step, factor): self.step, self.factor = step, factor
    def after_loss(self):
        if self.training and self.train_iter == self.step: self.learn.loss = self.learn.loss*self.factor

@pytest.mark.parametrize('factor, said', [(math.nan, 'the loss is nan, no finite number'), (math.inf, 'the loss is inf'), (1e6, 'more than 1000 times the first')])
def test_a_broken_loss_ends_the_fit_before_the_step(factor, said):
    class Weights(Callback):
        def before_batch(self): self.learn.kept = self.model[0].weight.detach().clone()
    learn = quick(small_net(), Poison(6, factor), Watch(), Weights)
    message, = learn.watch.messages
    assert message.startswith('step 7: ') and said in message and message.endswith('the fit ends before this step')
    assert torch.equal(learn.model[0].weight, learn.kept) and len(learn.recorder.losses) == 6

def test_a_healthy_run_is_left_alone():
    assert quick(small_net(), Watch(), epochs=2).watch.messages == []
    assert len(quick(small_net(), Poison(3, 900.), Watch()).recorder.values) == 2   # a jump below the limit

class Scripted(Callback):
    "Writes validation losses into the recorder"
    order = 52
    def __init__(self, *given): self.given = given
    def after_epoch(self): self.recorder.values[-1][1] = self.given[self.epoch]

@pytest.mark.parametrize('losses, epochs', [((2., 1.9, 1.8, 1.7, 1.6), []), ((2., 1.99, 1.982, 1., .9), [3]), ((2., 1., 1., 1., 1.), [4]), ((2.4, 2.31, 2.30, 2.2, 2.2), [2]),
                                            ((math.nan,)*5, [1]), ((1., math.nan, 1.1, .5, .4), [2, 3])])
def test_plateaus_are_told_once_and_the_run_goes_on(losses, epochs):
    learn = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Scripted(*losses), Watch(patience=2), epochs=5)
    assert [int(m.split(':')[0].split()[1]) for m in learn.watch.messages] == epochs and len(learn.recorder.values) == 5
    assert all('plateau' in m or m.endswith('the validation loss is nan, no finite number') for m in learn.watch.messages)

@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_one_bad_image_leaves_no_trace_in_running_statistics(value):
    class BadPixel(Callback):
        def before_batch(self):
            if not self.training: return
            self.learn.kept = [b.clone() for b in self.model.buffers()]
            if self.train_iter == 3: self.learn.xb = (self.x.index_put((torch.tensor(0),)*4, torch.tensor(value)),)
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    learn = quick(net, BadPixel(), Watch())
    message, = learn.watch.messages
    assert 'step 4: the loss is nan' in message and 'the images hold values that are none' in message
    assert all(torch.equal(b, k) for b, k in zip(net.buffers(), learn.kept)) and net[0].num_batches_tracked == 3
    with learn.no_bar(), learn.no_logging(): assert math.isfinite(learn.validate()[0])

def test_messages_are_printed_where_the_table_is(capsys):
    learn = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Poison(1, math.nan), Watch())
    assert capsys.readouterr().out == ''
    with learn.no_bar(): learn.fit(1)
    assert 'step 2: the loss is nan' in capsys.readouterr().out

two = """
import sys
sys.path.insert(0, sys.argv[1])
from test_callbacks import *
from fastai.torch_core import rank_distrib
torch.distributed.init_process_group('gloo')
rank = rank_distrib()
learn = quick(small_net(), *[Poison(6, math.nan)]*(rank == 1), Own, Watch(), Together)
with open(f'{sys.argv[2]}/{rank}', 'w') as f: json.dump([len(learn.recorder.losses), learn.own.first, learn.watch.first, learn.watch.messages], f)
os._exit(0)   # the group is not taken down: in torch 2.6 that waits for ever, about every third time
"""

class Own(Callback):
    "Keeps the first loss of a process, which has weights of its own"
    order, first = -1, None
    def after_loss(self):
        if self.first is None: self.first = self.learn.loss.item()

class Together(Callback):
    "Waits for the other process at each step, as gradients do that are averaged"
    order = 60
    def after_loss(self):
        if self.training: torch.distributed.barrier()

def test_processes_end_together(tmp_path):
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '--no-python', sys.executable, '-c', two, os.path.dirname(__file__), str(tmp_path)]
    done = subprocess.run(run, env=os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    (steps, own, first, said), other = [json.loads((tmp_path/rank).read_text()) for rank in '01']
    assert other == [steps, other[1], first, said]
    assert own != other[1] and first == pytest.approx((own + other[1])/2)   # the watch sees their mean
    assert steps == 6 and said[0].startswith('step 7: the loss is nan')

@pytest.mark.parametrize('kw', [dict(patience=0), dict(better=1.), dict(explode=.5), dict(explode=math.nan)])
def test_watch_refuses(kw):
    with pytest.raises(ValueError, match=f'^{next(iter(kw))} must'): Watch(**kw)

def test_the_smallest_settings_of_a_watch_are_allowed():
    watch = Watch(patience=1, better=0., explode=1.)
    assert (watch.patience, watch.better, watch.explode, watch.guess) == (1, 0, 1, None) and Watch(better=.99).better == .99
    assert ((usual := Watch()).patience, usual.better, usual.explode) == (5, .01, 1000)

def test_a_process_alone_waits_for_no_other(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '1')   # as `torchrun` sets it, and no group was made
    assert len(quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Watch(), epochs=1).recorder.losses) == 5




# limits and edges of the watch

class Losses(Callback):
    "Puts given losses in the place of the real ones"
    order = -1
    def __init__(self, *given): self.given = given
    def after_loss(self):
        if self.training and self.train_iter < len(self.given):
            self.learn.loss = self.learn.loss*0 + self.given[self.train_iter]

@pytest.mark.parametrize('first, guess, explode, limit', [
    (8., 2., 4., 32.),    # the first loss is higher than guessing
    (2., 8., 4., 32.),    # guessing is higher
    (2., 0., 4., 8.),     # nothing is known of guessing
    (.875, 0., 4., 3.5)]) # and the first loss is low
def test_the_limit_is_exact(first, guess, explode, limit):
    def steps(loss):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        watch = Watch(explode=explode, guess=guess)
        learn = quick(net, Losses(first, loss), watch, epochs=1)
        return len(learn.recorder.losses), watch.messages
    assert steps(limit) == (5, [])
    above, (message,) = steps(math.nextafter(limit, math.inf)*(1 + 1e-6))
    assert above == 1 and message.startswith('step 2: ')

def test_the_level_of_guessing_is_known_for_classes_alone():
    learn = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Watch(), epochs=1)
    assert learn.watch.guess == pytest.approx(math.log(10))
    loss = nn.CrossEntropyLoss()
    learn = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Watch(), epochs=1, loss=loss)
    assert learn.watch.guess is None and quick(small_net(), Watch(guess=1.5)).watch.guess == 1.5

def test_a_first_loss_without_a_number_ends_the_fit():
    learn = quick(small_net(), Losses(math.nan), Watch())
    assert learn.watch.messages[0].startswith('step 1: the loss is nan')
    assert not len(learn.recorder.losses)

def test_fits_are_told_from_other_loops():
    class Asked(Callback):
        def __init__(self): self.answers = []
        def before_fit(self): self.answers.append(fitting(self.learn))
    learn = quick(small_net(), Asked, epochs=1)
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.get_preds()
        learn.lr_find(num_it=20, show_plot=False)
        learn.fit(1)
    assert learn.asked.answers == [True, False, False, False, True]


# the recorder beside checkpointing

@pytest.mark.parametrize('segments', [1, 2, 3])
def test_recording_is_the_same_under_checkpointing(segments):
    "Blocks that are computed again on the way back are noted once, with their gradients"
    def recorded(*cbs):
        torch.manual_seed(1)
        blocks = nn.Sequential(StrictBlock(4), StrictBlock(4), StrictBlock(4))
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), blocks, nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(4, 10))
        return quick(net, SignalRecorder(every=2), *cbs, epochs=1).signal_recorder.record()
    whole, parts = recorded(), recorded(StageCheckpoint(segments))
    assert whole['blocks'] == parts['blocks'] == ['1.0', '1.1', '1.2']
    for name in ('signals', 'gradients', 'gains'):
        assert all(v is not None for row in parts[name] for v in row)
        torch.testing.assert_close(torch.tensor(parts[name]), torch.tensor(whole[name]), rtol=1e-5, atol=0)


# one unit, and lost additions

def test_percentiles_are_those_of_what_enters_the_layer():
    seen = []
    class Watching(Callback):
        def before_fit(self): self.handle = self.model[2].register_forward_pre_hook(self.note)
        def note(self, module, inputs):
            if module.training: seen.append(inputs[0].detach()[:,1].flatten().tolist())
        def after_fit(self): self.handle.remove()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    learn = quick(net, Percentiles(unit=1, every=2, percentiles=(0, 50, 100)), Watching)
    p = learn.percentiles
    assert p.layer == '2' and p.steps == [0, 2, 4, 6, 8] and len(seen) == 10
    for step, (low, middle, high) in zip(p.steps, p.values):
        x = sorted(seen[step])
        assert (low, high) == (x[0], x[-1])
        assert middle == pytest.approx((x[(len(x) - 1)//2] + x[len(x)//2])/2, rel=1e-4, abs=1e-6)
    assert not net[2]._forward_pre_hooks
    assert json.dumps(p.record(), allow_nan=False)

def test_recorders_of_one_question_name_what_is_missing():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match='layer must be a name from model.named_modules'): quick(flat, Percentiles())
    with pytest.raises(ValueError, match="got 'conv9'"): quick(small_net(), Percentiles('conv9'))
    p = Percentiles()
    assert (p.layer, p.unit, p.every, p.percentiles) == (None, 0, 1, [15, 50, 85])
    with pytest.raises(ValueError, match='model must hold residual units'): quick(flat, Additions())
    for kw in (dict(unit=-1), dict(every=0), dict(percentiles=(101,))):
        with pytest.raises(ValueError, match=f'^{next(iter(kw))} must'): Percentiles(**kw)

def test_additions_are_counted_by_hand():
    class Shift(nn.Module):
        "What every other pixel gets is too small to change it"
        def forward(self, x): return torch.full_like(x, 1.).index_fill(3, torch.arange(0, x.shape[3], 2), 1e-12)
    net = small_net()
    net[1].branch, net[2].branch = Shift(), nn.Module()
    net[2].branch.forward = torch.zeros_like   # adds nothing at all: does not count
    with torch.no_grad(): net[0].bias.fill_(1.)
    torch.manual_seed(0)
    dls = DataLoaders(*(DataLoader(images[:64], bs=64) for _ in range(2)))
    dls.c = 10
    learn = classifier(dls, net, 1e-9, cbs=Additions)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert math.isnan(learn.additions.record()['lost_before'])   # the second unit has nothing to count
    net[2].branch = Shift()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.additions.record() == pytest.approx(dict(lost_before=.5, lost_after=.5), abs=.02)
    assert not net[1].shortcut._forward_hooks

def test_a_branch_that_is_left_out_adds_nothing():
    "As in a copy whose branch returns zeros; the net itself is left as it was"
    net = small_net()
    learn = quick(net, Lesions(), epochs=1)
    kept = {name: v.clone() for name, v in net.state_dict().items()}
    noted = learn.lesions.record()
    learn.validate()   # sends the same events, and changes nothing
    assert learn.lesions.record() == noted
    def right(model):
        with torch.no_grad(): return sum((model.eval()(x).argmax(1) == y).sum().item() for x, y in learn.dls.valid)
    n = sum(len(y) for x, y in learn.dls.valid)
    assert noted['whole'] == right(net)/n and len(noted['without_branch']) == 2
    for i, found in zip((1, 2), noted['without_branch']):
        cut = copy.deepcopy(net)
        cut[i].branch = nn.Module()
        cut[i].branch.forward = torch.zeros_like
        assert found == right(cut)/n
    assert noted['matter'] == sum(noted['whole'] - a > .01 for a in noted['without_branch'])/2
    learn.lesions.whole, learn.lesions.without = .9, [.9, .8, .5, .895]
    assert learn.lesions.record() == dict(whole=.9, without_branch=[.9, .8, .5, .895], matter=.5)
    learn.lesions.whole, learn.lesions.without = .01, [0.]   # a point itself is not over a point
    assert learn.lesions.record()['matter'] == 0
    assert all(torch.equal(kept[name], v) for name, v in net.state_dict().items()) and not net[1].shortcut._forward_pre_hooks
    with pytest.raises(ValueError, match='model must hold residual units'): quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Lesions())

@pytest.mark.parametrize('y, said', [(torch.zeros(2), r'got torch.float32 of shape \(2,\)'), (torch.zeros(2, 1).long(), r'got torch.int64 of shape \(2, 1\)')])
def test_accuracy_wants_one_class_number_per_image(y, said):
    lesions = Lesions()
    lesions.learn = SimpleNamespace(dls=SimpleNamespace(valid=[(torch.eye(2), y)]), model=nn.Identity())
    with pytest.raises(ValueError, match='targets must be one class number per image, ' + said): lesions.accuracy()


# the audit at the start

@pytest.mark.parametrize('error', [ValueError('no branches'), RuntimeError('out of memory'), KeyError(3), NotImplementedError()])
def test_a_failed_audit_is_a_warning(monkeypatch, error):
    def fails(*args, **kwargs): raise error
    monkeypatch.setattr('resnotes.callbacks.audit', fails)
    with pytest.warns(UserWarning, match='not audited: '): learn = quick(small_net(), AuditAtStart())
    assert len(learn.recorder.losses) == 10
    kept = learn.audit_at_start.record()
    assert kept['findings'] == [f'not audited: {str(error) or "NotImplementedError"}'] and kept['main'] == []

def test_a_failed_reading_of_the_audit_is_a_warning(monkeypatch):
    monkeypatch.setattr('resnotes.callbacks.audit', lambda *args, **kwargs: object())
    with pytest.warns(UserWarning, match='not audited: '): learn = quick(small_net(), AuditAtStart())
    assert len(learn.recorder.losses) == 10

def test_additions_of_a_fit_stay_when_the_learner_validates_or_predicts():
    torch.manual_seed(1)
    learn = quick(small_net(), Additions(), epochs=1)
    noted = learn.additions.record()
    with torch.no_grad():
        for unit in learn.model[1:3]: unit.branch.conv2.weight.mul_(1e-9)
    assert learn.additions.measure() > .9 > noted['lost_after']   # what would be counted now
    with learn.no_bar(), learn.no_logging(): learn.validate(), learn.get_preds()
    assert learn.additions.record() == noted
    fresh = classifier(learn.dls, small_net(), .05, cbs=Additions())
    with fresh.no_bar(), fresh.no_logging(): fresh.validate()
    assert fresh.additions.record() == dict(lost_before=None, lost_after=None)


# what is no step, and what an interrupt leaves

class StopOnce(Callback):
    "An interrupt at the first event of a name"
    def __init__(self, event): self.event, self.done = event, False
    def __call__(self, event):
        if event == self.event and not self.done:
            self.done = True
            raise KeyboardInterrupt
        return super().__call__(event)

def test_percentiles_count_the_steps_of_the_fit_alone():
    learn = quick(small_net(), Percentiles(every=2), epochs=1)
    assert learn.percentiles.steps == [0, 2, 4]
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=10, suggest_funcs=(), show_plot=False)
        learn.validate()
    assert learn.percentiles.steps == [0, 2, 4]
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert learn.percentiles.steps == [0, 2, 4, 6, 8] and not any(m._forward_pre_hooks for m in learn.model.modules())
    kept = quick(small_net(), Percentiles(), AuditAtStart(warn=False), StageCheckpoint(2), epochs=1)
    assert kept.percentiles.steps == [0, 1, 2, 3, 4]
    with pytest.raises(Exception, match='unit must be at most 3, got 99'): quick(small_net(), Percentiles(unit=99))

@pytest.mark.parametrize('callback', [EvenGradients(growth=5.), Percentiles()])
def test_hooks_last_no_longer_than_the_batch(callback):
    torch.manual_seed(0)
    net = small_net()
    with pytest.raises(KeyboardInterrupt): quick(net, callback, StopOnce('before_validate'), epochs=1)
    assert not any(m._forward_pre_hooks for m in net.modules())

def test_losses_below_zero_are_compared_by_their_difference():
    learn = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Losses(-1., .5, .4), Watch(guess=0.), epochs=1)
    assert learn.watch.messages == []
    rising = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Scripted(-.9997, -.9948, -.9916, -.9847, -.9797), Watch(patience=3, guess=0.), epochs=5)
    message, = rising.watch.messages
    assert message.startswith('epoch 4: plateau') and message.endswith('since epoch 1, -0.9997')

@pytest.mark.parametrize('losses, guess, epoch', [((2., 1., 1., 1., 1.), 99., 3), ((2., .99, 1., 1., 1.), 99., 4), ((1., 1., 1., 1., 1.), 2., 3), ((1.01,)*5, 2., 2)])
def test_half_as_much_is_not_lower_by_more_than_half(losses, guess, epoch):
    "Nor is it above what a loss must reach to be better than guessing"
    watch = Watch(patience=2, better=.5, guess=guess)
    quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Scripted(*losses), watch, epochs=5)
    assert watch.messages[0].startswith(f'epoch {epoch}: plateau') and ('guessing' in watch.messages[0]) == (epoch == 2)

def test_the_last_of_several_is_looked_at():
    learn = quick(small_net(), Percentiles(unit=3), epochs=1)   # the last of four channels
    relus = [name for name, m in learn.model.named_modules() if isinstance(m, nn.ReLU)]
    assert len(relus) > 2 and learn.percentiles.layer == relus[-1]
    held, block = HoldScale(layers=nn.Sequential), nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(4)])
    held.learn = SimpleNamespace(model=block)
    assert held.ends[0] is block[3].weight

def test_scales_are_held_where_there_is_a_weight_to_hold():
    for net, layers, said in ((small_net(), nn.Linear, 'layers must be blocks of the model that hold an nn.Conv2d'), (small_net(), nn.LSTM, 'layers must be blocks'),
                              (weight_normed(), Residual, 'model must own the last weights of its blocks')):
        with pytest.raises(ValueError, match=said): quick(net, HoldScale(layers=layers))

def weight_normed():
    net = small_net()
    for m in (net[1], net[2]): torch.nn.utils.parametrizations.weight_norm(m.branch.conv2)
    return net
