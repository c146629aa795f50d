"Trials as plain data, and their Learners"
import inspect, json, math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import no_random
from hypothesis import given, settings, strategies as st

from resnotes import networks, trial as trials
from resnotes.blocks import ExclusiveGate, Identity, Scale, ShortcutDropout, ShortcutGate, StrictBlock
from resnotes.experiments import experiments
from resnotes.init import fans
from resnotes.resume import Resume
from resnotes.trial import Trial, build_learner, build_model, fit_trial

SMALL = dict(experiment='x', arm='a', preset='smoke', seed=0, data='digits', data_args=dict(valid_pct=.9), model='taki_tower',
             model_args=dict(depth=3, width=4), init='depth_scaled_normal', epochs=3, lr=.05)
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small(**changes): return Trial(**SMALL | changes)
def model_of(trial): return build_model(trial, IMAGES, 10)

def quiet(trial, *cbs):
    learn = build_learner(trial, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): fit_trial(learn, trial)
    return learn

def losses(learn): return [loss.item() for loss in learn.recorder.losses]


# ---- trials
def test_ids_are_pinned():
    assert small().id == '1743e4e97562'
    assert experiments['taki-cifar'].trials('gpu')[0].id == '74f7049beb8a'
    assert small(arm='é').id == '7805477f6f9b'

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                     lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(), o, max_size=3), max_leaves=8)

@settings(max_examples=40)
@given(st.dictionaries(st.text(), plain, max_size=4))
def test_what_is_plain_comes_back_from_a_file(args):
    kept = trials._plain('args', args)
    again = trials._plain('args', json.loads(json.dumps(kept)))
    assert again == kept and json.dumps(again, sort_keys=True) == json.dumps(trials._plain('args', dict(reversed(args.items()))), sort_keys=True)

@pytest.mark.parametrize('changes', [{}, dict(model_args=dict(width=4, depth=2)), dict(init='gpt2', init_args=dict(rest='he_normal', c=.5)),
                                     dict(callbacks=dict(signals=dict(every=3), additions={}))])
def test_round_trip_keeps_the_id(changes):
    t = small(**changes)
    again = Trial(**json.loads(json.dumps(asdict(t))))
    assert again == t and again.id == t.id
    assert replace(t, init_args=dict(reversed(t.init_args.items()))).id == t.id

def test_spelling_does_not_matter():
    assert small(epochs=3., model_args=dict(width=4., depth=3)).id == small().id
    net = dict(model='resnet20', init='he_normal')
    assert small(**net, model_args=dict(blocks=(1, 2))).id == small(**net, model_args=dict(blocks=[1, 2])).id
    assert len({small(), small(epochs=3.), small(seed=1)}) == 2

OTHER = dict(experiment='y', arm='b', preset='cpu', seed=1, model='resnet20', epochs=4, lr=.1, data_args=dict(valid_pct=.8), model_args={},
             init='he_normal', init_args=dict(c=2), loss_args=dict(ignore_index=-1), optimizer='adam', momentum=0, wd=.1, schedule='steps',
             dtype='bfloat16', callbacks=dict(additions={}), clip=1)

@pytest.mark.parametrize('name', [f.name for f in fields(Trial) if f.name not in ('data', 'loss')])
def test_every_field_changes_the_id(name):
    rest = dict(model_args={}) if name == 'model' else {}
    assert small(**{name: OTHER[name]} | rest).id != small(**rest).id

def test_data_and_loss_change_the_id():
    masks = dict(data='salt', data_args={}, model='strict_unet48', model_args={}, init='he_normal')
    ids = {small(**masks | change).id for change in (dict(loss='iou'), dict(loss='bce'), dict(loss='iou', data='nuclei'))}
    assert len(ids) == 3

def test_later_changes_of_the_arguments_do_not_reach_a_trial():
    args = dict(depth=3)
    t = small(model_args=args)
    before = t.id
    args['depth'] = 4
    asdict(t)['model_args']['depth'] = 5
    assert t.id == before and t.model_args == dict(depth=3)

@pytest.mark.parametrize('changes, message', [
    (dict(preset='huge'), "preset must be one of 'smoke', 'cpu', 'gpu', got 'huge'"),
    (dict(data='mnist'), "data must be one of 'digits', 'salt', 'cifar10', 'nuclei', got 'mnist'"),
    (dict(model='vgg'), "must be one of 'vgg16'"), (dict(init='xavier'), "init must be one of 'lecun_normal'"),
    (dict(loss='mse'), "loss must be one of 'cross_entropy'"), (dict(optimizer='lion'), "optimizer must be one of 'sgd', 'adam'"),
    (dict(schedule='cosine'), 'schedule must be one of'), (dict(dtype='float8'), "dtype must be one of 'float32'"),
    (dict(callbacks=dict(watch={})), "callback must be one of 'percentiles', 'additions', 'lesions', 'signals', 'batch_statistics', 'even_gradients', 'hold_scale', got 'watch'"),
    (dict(callbacks=dict(signals=dict(evry=2))), r"callbacks\['signals'\] must be arguments of SignalRecorder"),
    (dict(data_args=dict(vaild_pct=.5)), 'data_args must be arguments of digits'), (dict(loss_args=dict(esp=1)), 'loss_args must be arguments of'),
    (dict(model_args=dict(depht=3)), 'depht'), (dict(model_args=dict(depth=0)), 'depth must be at least 1'),
    (dict(loss='iou'), "loss must be 'cross_entropy' for labels"), (dict(data='salt', data_args={}), "loss must be 'cross_entropy' for labels"),
    (dict(seed=-1), 'seed must be at least 0'), (dict(epochs=0), 'epochs must be at least 1'), (dict(lr=0), 'lr must be greater than 0'),
    (dict(momentum=1), 'momentum must be'), (dict(wd=-1), 'wd must be'), (dict(experiment='../x'), 'experiment must be letters, digits and hyphens'),
    (dict(lr=math.nan), 'lr must hold finite numbers'), (dict(model_args=[1]), 'model_args must be a dict'), (dict(arm=3), 'arm must be a str'),
    (dict(seed=np.int64(3)), 'seed must hold finite numbers'), (dict(model_args={3: 4}), 'model_args must hold'),
    (dict(model_args=dict(depth=torch.tensor(3))), r"model_args\['depth'\] must hold finite numbers")])
def test_refusals(changes, message):
    with pytest.raises((ValueError, TypeError), match=message): small(**changes)

@pytest.mark.parametrize('changes, text', [
    (dict(init='he_normal', init_args=dict(ony='1')), "init_args must fit the rule 'he_normal': the rule 'he_normal' takes .*got ony"),
    (dict(init='default', init_args=dict(mode='fan_out')), "the rule 'default' takes only, generator, got mode"),
    (dict(init='gpt2', init_args=dict(c=0)), 'c must be greater than 0'), (dict(init='gpt2', init_args=dict(rest='foo')), 'rest must be one of'),
    (dict(init='gpt2', init_args=dict(rule='zero')), "the rule 'gpt2' takes c, rest, only, generator, got rule"),
    (dict(init='gpt2', init_args=dict(generator=3)), 'generator must be a torch.Generator or None'),
    (dict(init='he_normal', init_args=dict(mode='fan_avg')), 'mode must be one of'),
    (dict(model_args=dict(depth=3, n_classes=3)), "model_args must not hold 'n_classes', which the data decide"),
    (dict(model_args=dict(depth=3, in_channels=3)), "model_args must not hold 'in_channels'"),
    (dict(callbacks=dict(signals=dict(every=0))), r"callbacks\['signals'\] must fit SignalRecorder: every must be at least 1, got 0"),
    (dict(callbacks=dict(even_gradients=dict(growth=-1))), 'must fit EvenGradients: growth must be'),
    (dict(arm='a\x1b[31m'), 'arm must be text that can be printed'), (dict(experiment='--help'), 'experiment must be letters'),
    (dict(seed=2**32), 'seed must be at most 4294967295'), (dict(epochs=10**6 + 1), 'epochs must be at most 1000000'),
    (dict(data='salt', data_args={}, loss='iou', model='strict_unet48', loss_args=dict(over='nothing')), 'loss_args must fit'),
    (dict(data_args=dict(seed=3)), "data_args must not hold 'seed'"), (dict(loss_args=dict(reduction='nope')), 'loss_args must fit'),
    (dict(loss_args=dict(reduction='none')), 'loss_args must give one number'), (dict(callbacks=dict(percentiles=3)), 'must be a dict of arguments, got 3')])
def test_arguments_are_refused_before_anything_is_built(changes, text):
    with pytest.raises((TypeError, ValueError), match=text): small(**changes)

@pytest.mark.parametrize('changes', [dict(seed=2**32 - 1), dict(epochs=10**6), dict(momentum=.9999), dict(epochs=1, momentum=0, wd=0, clip=0)])
def test_settings_at_their_limits_are_allowed(changes):
    t = small(**changes)
    assert {name: getattr(t, name) for name in changes} == changes

def test_a_trial_does_not_change():
    with pytest.raises(FrozenInstanceError): small().seed = 1

def test_what_is_not_said_of_a_trial():
    t = small()
    assert (t.loss, t.optimizer, t.momentum, t.wd, t.schedule, t.dtype, t.clip) == ('cross_entropy', 'sgd', .9, 0, 'constant', 'float32', 0)


# ---- models and weights
@pytest.mark.parametrize('name, cls, args', [('scale', Scale, dict(shortcut=.5)), ('dropout', ShortcutDropout, dict(p=.5)),
                                             ('shortcut_gate', ShortcutGate, dict(bias=-6)), ('exclusive_gate', ExclusiveGate, dict(bias=-6))])
def test_a_named_shortcut_replaces_identities_only(name, cls, args):
    t = small(model='resnet20', model_args=dict(shortcut=name, shortcut_args=args), init='he_normal')
    units = model_of(t).units
    assert [type(u.shortcut) for u in units].count(cls) == 7 and not any(type(u.shortcut) is Identity for u in units)
    if 'bias' in args: assert all((u.shortcut.bias == -6).all() for u in units if isinstance(u.shortcut, ShortcutGate))

def test_gains_by_name():
    for rule, wanted in (('zero', lambda k: 0), ('even', lambda k: 1/8), ('harmonic', lambda k: 1/k), ('reversed', lambda k: 1/(9 - k)),
                         ('constant', lambda k: 1)):
        t = small(model='tower', model_args=dict(depth=8, width=32), init=rule)
        blocks = [m for m in model_of(t).modules() if isinstance(m, StrictBlock)]
        power = torch.stack([b.branch.conv2.weight.square().mean()*fans(b.branch.conv2).fan_in for b in blocks]).double()
        want = torch.tensor([wanted(k) for k in range(1, 9)]).double()*2/(1 - 1/math.pi)
        torch.testing.assert_close(power, want, rtol=.06, atol=1e-9)   # 9216 weights: four standard errors

def test_weights_follow_the_seed_and_not_the_loader():
    a, b, c = (model_of(small(seed=s)) for s in (0, 0, 1))
    torch.rand(3)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.stem.conv.weight, c.stem.conv.weight)
    assert torch.equal(a.stem.conv.weight, build_learner(small(data_args=dict(valid_pct=.5))).model.stem.conv.weight.cpu())

def test_a_start_that_measures_looks_at_thirty_two_images():
    def start(i, factor):
        images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        images[i] *= factor
        return torch.cat([p.flatten() for p in build_model(small(init='lsuv'), images, 10).parameters()])
    usual = start(31, 1)
    assert torch.equal(usual, start(32, 5)) and not torch.equal(usual, start(31, 5))

def test_the_default_start_is_that_of_the_network():
    with no_random(0): want = networks.build('taki_tower', depth=3, width=4)
    got = model_of(small(init='default'))
    assert all(torch.equal(p, q) for p, q in zip(got.parameters(), want.parameters()))

@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_number_formats(dtype):
    model = model_of(small(dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model(torch.randn(2, 1, 8, 8)).dtype == torch.float32
    assert all(map(math.isfinite, losses(quiet(small(dtype=dtype, epochs=1)))))


@pytest.mark.parametrize('power, lost', [(-9, 1), (-7, 0)])
def test_additions_round_in_the_format_of_the_trial(power, lost):
    "Blocks that add a constant: 2^-9 is lost on 1 in bfloat16, 2^-7 is not"
    learn = build_learner(small(dtype='bfloat16', callbacks=dict(additions={})))
    tower = learn.model.model
    with torch.no_grad():
        for p in tower.parameters(): p.zero_()
        tower.stem.conv.bias.fill_(1)
        for block in tower.blocks: block.branch.conv1.weight[:, :, 1, 1] = 2.**power/4   # four channels of 1
    learn.additions.before_fit()
    assert learn.additions.before == lost


# ---- learners
def test_same_seed_same_losses_to_the_bit():
    with no_random(3): first = losses(quiet(small()))
    with no_random(4): again = losses(quiet(small()))
    assert first == again and first != losses(quiet(small(seed=1)))

class OneStep(Callback):
    order = 90   # after the recorder
    def after_batch(self): raise CancelFitException

class Cut(Callback):
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == (1, 1): raise KeyboardInterrupt

def test_a_killed_trial_goes_on_to_the_same_bits_and_notes(tmp_path):
    t = small(model='resnet20', model_args=dict(blocks=[1, 1, 1]), init='he_normal', data_args=dict(valid_pct=.8),
              schedule='one_cycle', callbacks=dict(percentiles={}, additions={}, batch_statistics={}))
    alone = quiet(t)
    with pytest.raises(KeyboardInterrupt): quiet(t, Resume(tmp_path, asdict(t)), Cut())
    resumed = quiet(t, Resume(tmp_path, asdict(t)))
    assert losses(alone) == losses(resumed)
    assert alone.percentiles.record() == resumed.percentiles.record() and len(alone.percentiles.steps) == 3*len(alone.dls.train)
    assert alone.additions.record() == resumed.additions.record()

def cycle(n):
    "One cycle over n steps: a quarter up from lr/25 along a cosine, then down to lr/1e5"
    def cosine(a, b, p): return a + (b - a)*(1 - math.cos(math.pi*p))/2
    return [cosine(1/25, 1, i/n/.25) if i/n < .25 else cosine(1, 1e-5, (i/n - .25)/.75) for i in range(n)]

@pytest.mark.parametrize('schedule, wanted', [('constant', [1]*8), ('warm_up', [.01, .505] + [1]*6), ('steps', [1]*4 + [.1]*2 + [.01]*2), ('one_cycle', cycle(8))])
def test_schedules(schedule, wanted):
    t = small(schedule=schedule, epochs=4, lr=.01, data_args=dict(valid_pct=.9, bs=64))
    learn = quiet(t)
    assert len(learn.dls.train) == 2
    np.testing.assert_allclose(learn.recorder.hps['lr'], np.array(wanted)*.01, rtol=1e-6)

@pytest.mark.parametrize('optimizer', ['sgd', 'adam'])
def test_weight_decay_of_a_trial_pulls_at_weights(optimizer):
    "One step from the same start: what the decay adds is -lr wd w, and nothing at norms and biases"
    ends = []
    for wd in (0, .5):
        t = small(optimizer=optimizer, lr=.01, epochs=1, wd=wd, model_args=dict(depth=3, width=4, batch_norm=True))
        learn = build_learner(t, cbs=OneStep())
        start = [p.detach().clone() for p in learn.model.parameters()]
        with learn.no_bar(), learn.no_logging(): fit_trial(learn, t)
        ends.append(list(learn.model.named_parameters()))
    kinds = set()
    for w, (name, plain), (_, decayed) in zip(start, *ends, strict=True):
        want = -.01*.5*w if w.ndim > 1 else torch.zeros_like(w)
        torch.testing.assert_close(decayed - plain, want, rtol=1e-3, atol=1e-6, msg=name)
        kinds.add((w.ndim > 1, name.split('.')[-1]))
    assert kinds == {(True, 'weight'), (False, 'weight'), (False, 'bias')}, 'norms and biases were there'

class Steps(Callback):
    "Keeps the weights and gradients of every step, and the weights after it"
    order = 1000
    def __init__(self): self.all = []
    def now(self): return [p.detach().clone() for p in self.model.parameters()]
    def before_step(self): self.all.append((self.now(), [p.grad.clone() for p in self.model.parameters()]))
    def after_step(self): self.all[-1] += (self.now(),)

def test_larc_steps_by_the_size_of_the_weights():
    "lr |w| g/|g| for each tensor, where neither is zero; no limit on its rate"
    learn = quiet(small(optimizer='larc', lr=.01, epochs=1, momentum=0., init='he_normal'), steps := Steps())
    big = 0
    for w, g, after in zip(*steps.all[0], strict=True):
        if not (w.norm() and g.norm()): continue
        torch.testing.assert_close(after, w - .01*w.norm()/g.norm()*g, rtol=1e-4, atol=1e-6)
        big += bool(w.norm() > .01*g.norm())
    assert big > 3 and learn.opt_func.keywords['clip'] is False

@pytest.mark.parametrize('clip', [0., .01])
def test_a_trial_may_limit_the_gradient(clip):
    quiet(small(optimizer='sgd', lr=.1, epochs=1, momentum=0., clip=clip), steps := Steps())
    norms = [torch.stack([g.norm() for g in grads]).norm().item() for _, grads, _ in steps.all]
    assert max(norms) <= clip*1.001 if clip else max(norms) > .1

def test_norms_go_back_to_running_statistics_after_validation():
    seen = []
    class Look(Callback):
        order = 1000
        def begin(self): return [(m.training, m.track_running_stats) for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        def before_validate(self): seen.append(self.begin())
        def after_validate(self): seen.append(self.begin())
    quiet(small(epochs=1, callbacks=dict(batch_statistics={}), model_args=dict(depth=3, width=4, batch_norm=True)), Look())
    assert len(seen[0]) > 2 and {*seen[0]} == {(True, False)} and {*seen[1]} == {(False, True)}

def test_an_interrupt_in_validation_does_not_stop_running_statistics():
    class Stop(Callback):
        order, done = 1000, False
        def after_pred(self):
            if not self.training and not self.done:
                self.done = True
                raise KeyboardInterrupt
    t = small(epochs=1, callbacks=dict(batch_statistics={}), model_args=dict(depth=3, width=4, batch_norm=True))
    learn = build_learner(t, cbs=Stop())
    norm, = [m for m in learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d)][:1]
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): fit_trial(learn, t)
        before = norm.running_mean.clone()
        fit_trial(learn, t)
    assert norm.track_running_stats and not torch.equal(before, norm.running_mean)

def test_images_that_are_promised_are_those_that_come():
    masks = dict(model='strict_unet48', model_args=dict(width=4), init='he_normal', loss='iou')
    t = small(data='salt', data_args=dict(size=33, bs=8), **masks)
    assert trials.sizes['salt'] == inspect.signature(trials.salt).parameters['n'].default and trials.promised_images(t) == 800
    few = small(data='salt', data_args=dict(size=33, bs=8, n=20), **masks)
    learn = build_learner(few)
    assert trials.promised_images(few) == 16 == len(learn.dls.train_ds)
    with torch.no_grad(): assert learn.model(learn.dls.one_batch()[0]).shape == (8, 1, 33, 33)

@pytest.mark.parametrize('data, args, n', [
    ('digits', {}, 1437), ('digits', dict(valid_pct=.5), 898), ('salt', {}, 800), ('salt', dict(n=30, valid_pct=.3), 21), ('cifar10', {}, 50000), ('cifar10', dict(n=6000), 6000),
    ('cifar10', dict(small=True), 5000), ('cifar10', dict(small=True, n=7000), 5000), ('cifar10', dict(small=True, n=70), 70), ('nuclei', {}, 3504), ('nuclei', dict(n=99), 99)])
def test_how_many_images_are_promised(data, args, n):
    masks = dict(model='strict_unet48', model_args={}, init='he_normal', loss='iou')
    assert trials.promised_images(small(data=data, data_args=args, **masks if data in ('salt', 'nuclei') else {})) == n

def test_missing_or_small_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('RESNOTES_DATA', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='RESNOTES_DATA'): build_learner(small(data='cifar10', data_args={}))
    masks = dict(model='strict_unet48', model_args={}, init='he_normal', loss='iou')
    with pytest.raises(FileNotFoundError, match='RESNOTES_DATA'): build_learner(small(data='nuclei', data_args={}, **masks))
    monkeypatch.setitem(trials.loaders, 'cifar10', lambda seed, **kwargs: trials.data.digits(seed=seed))
    with pytest.raises(ValueError, match="data must give 50000 training images for this trial, 'cifar10' gave 1437"):
        build_learner(small(data='cifar10', data_args={}))

def test_fewer_images_than_promised_are_refused_unless_their_path_is_given(monkeypatch):
    few = SimpleNamespace(train_ds=range(9), c=10, one_batch=lambda: (IMAGES,))
    monkeypatch.setitem(trials.loaders, 'cifar10', lambda seed, path=None: few)
    def built(*_): raise KeyError('the model is built')
    monkeypatch.setattr(trials, 'build_model', built)
    with pytest.raises(ValueError, match="data must give 50000 training images for this trial, 'cifar10' gave 9"): build_learner(small(data='cifar10', data_args={}))
    with pytest.raises(KeyError, match='the model is built'): build_learner(small(data='cifar10', data_args=dict(path='here')))
    monkeypatch.setitem(trials.sizes, 'cifar10', 9)
    with pytest.raises(KeyError, match='the model is built'): build_learner(small(data='cifar10', data_args={}))
