"Trials, their Learners, and every experiment"
import json, math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import no_random
from hypothesis import given, settings, strategies as st
from torch import nn

from resnotes import experiments as ex
from resnotes.blocks import ExclusiveGate, Identity, Scale, ShortcutDropout, ShortcutGate, StrictBlock
from resnotes.experiments import Additions, Percentiles, Trial, build, experiments, fit, learner, presets
from resnotes.train import Resume

SMALL = dict(experiment='x', arm='a', preset='smoke', seed=0, data='digits', data_args=dict(valid_pct=.9), model='tower',
             model_args=dict(depth=3, channels=4), init='depth_scaled_normal', epochs=3, lr=.05)


def small(**changes): return Trial(**SMALL | changes)

def quiet(trial, *cbs):
    learn = learner(trial, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): fit(learn, trial)
    return learn

def losses(learn): return [loss.item() for loss in learn.recorder.losses]


# ---- trials
def test_ids_are_pinned():
    assert small().id == '56800d24aeeb'
    assert experiments['taki-cifar'].trials('gpu')[0].id == '20cb9f9348ec'

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                     lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(), o, max_size=3), max_leaves=8)

@settings(max_examples=40)
@given(st.dictionaries(st.text(), plain, max_size=4))
def test_round_trip_keeps_the_id(args):
    t = small(model_args=args)
    assert Trial(**json.loads(json.dumps(t.settings()))) == t
    assert Trial(**json.loads(json.dumps(t.settings()))).id == t.id
    assert replace(t, model_args=dict(reversed(args.items()))).id == t.id

def test_spelling_does_not_matter():
    assert small(epochs=3., model_args=dict(channels=4., depth=3)).id == small().id
    assert small(model_args=dict(stages=(1, 2))).id == small(model_args=dict(stages=[1, 2])).id
    assert len({small(), small(epochs=3.), small(seed=1)}) == 2

OTHER = dict(experiment='y', arm='b', preset='cpu', seed=1, data='salt', model='unet', epochs=4, lr=.1, data_args=dict(valid_pct=.8), model_args={},
             init='he_normal', init_args=dict(c=2), loss='bce', loss_args=dict(eps=1), optimiser='adam', momentum=0, wd=.1, schedule='steps',
             dtype='bfloat16', callbacks=dict(additions={}))

@pytest.mark.parametrize('name', [f.name for f in fields(Trial)])
def test_every_field_changes_the_id(name): assert small(**{name: OTHER[name]}).id != small().id

def test_later_changes_of_the_arguments_do_not_reach_a_trial():
    args = dict(depth=3)
    t = small(model_args=args)
    before = t.id
    args['depth'] = 4
    t.settings()['model_args']['depth'] = 5
    assert t.id == before and t.model_args == dict(depth=3)

@pytest.mark.parametrize('changes, message', [
    (dict(preset='huge'), "preset must be one of 'smoke', 'cpu', 'gpu', got 'huge'"),
    (dict(data='mnist'), "data must be one of 'digits', 'salt', 'cifar10', 'nuclei', got 'mnist'"),
    (dict(model='vgg'), "model must be one of 'tower'"), (dict(init='xavier'), "init must be one of 'lecun_normal'"),
    (dict(loss='mse'), "loss must be one of 'cross_entropy'"), (dict(optimiser='lion'), "optimiser must be one of 'sgd', 'adam'"),
    (dict(schedule='cosine'), "schedule must be one of"), (dict(dtype='float8'), "dtype must be one of 'float32'"),
    (dict(callbacks=dict(watch={})), "callback must be one of 'percentiles', 'additions', 'signals', got 'watch'"),
    (dict(seed=-1), 'seed must be at least 0'), (dict(epochs=0), 'epochs must be at least 1'), (dict(lr=0), 'lr must be greater than 0'),
    (dict(momentum=1), 'momentum must be'), (dict(wd=-1), 'wd must be'), (dict(experiment='../x'), 'experiment must be letters, digits and hyphens'),
    (dict(lr=math.nan), 'lr must hold finite numbers'), (dict(model_args=[1]), 'model_args must be a dict'), (dict(arm=3), 'arm must be a str'),
    (dict(seed=np.int64(3)), 'seed must hold finite numbers'), (dict(model_args={3: 4}), 'model_args must hold'),
    (dict(model_args=dict(depth=torch.tensor(3))), r"model_args\['depth'\] must hold finite numbers")])
def test_refusals(changes, message):
    with pytest.raises((ValueError, TypeError), match=message): small(**changes)


# ---- models and weights
@pytest.mark.parametrize('kind, cls, args', [('scale', Scale, dict(shortcut=.5)), ('dropout', ShortcutDropout, dict(p=.5)),
                                            ('shortcut_gate', ShortcutGate, dict(bias=-6)), ('exclusive_gate', ExclusiveGate, dict(bias=-6))])
def test_skip_replaces_identities_only(kind, cls, args):
    t = small(model='resnet', model_args=dict(name='resnet20', skip=dict(kind=kind, **args)), init='he_normal')
    units = build(t, 1, 10).units
    assert [type(u.shortcut) for u in units].count(cls) == 7 and not any(type(u.shortcut) is Identity for u in units)
    if 'bias' in args: assert all((u.shortcut.gate.bias == -6).all() for u in units if isinstance(u.shortcut, ShortcutGate))

def test_gains_by_name():
    for gain, wanted in (('zero', lambda k: 0), ('even', lambda k: 1/8), ('harmonic', lambda k: 1/k)):
        t = small(model='strict_tower', model_args=dict(depth=8, width=4), init='he_normal', init_args=dict(gain=gain))
        blocks = [m for m in build(t, 1, 10).modules() if isinstance(m, StrictBlock)]
        power = torch.stack([b.branch.conv2.weight.square().sum() for b in blocks]).double()
        want = torch.tensor([wanted(k) for k in range(1, 9)]).double()
        torch.testing.assert_close(power/power.sum().clamp(min=1e-9), want/want.sum().clamp(min=1e-9), rtol=1e-4, atol=1e-9)

def test_weights_follow_the_seed_and_not_the_loader():
    a, b, c = (build(small(seed=s), 1, 10) for s in (0, 0, 1))
    torch.rand(3)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.stem.weight, c.stem.weight)
    assert torch.equal(a.stem.weight, learner(small(data_args=dict(valid_pct=.5))).model.stem.weight.cpu())

@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_number_formats(dtype):
    model = build(small(dtype=dtype), 1, 10)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model(torch.randn(2, 1, 8, 8)).dtype == torch.float32
    assert all(map(math.isfinite, losses(quiet(small(dtype=dtype, epochs=1)))))


# ---- learners
def test_same_seed_same_losses_to_the_bit():
    with no_random(3): first = losses(quiet(small()))
    with no_random(4): again = losses(quiet(small()))
    assert first == again and first != losses(quiet(small(seed=1)))

class Cut(Callback):
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == (1, 1): raise KeyboardInterrupt

def test_a_killed_trial_goes_on_to_the_same_bits_and_notes(tmp_path):
    t = small(model='resnet', model_args=dict(name='resnet20', stages=[1, 1, 1]), init='he_normal', data_args=dict(valid_pct=.8),
              schedule='one_cycle', callbacks=dict(percentiles={}, additions={}))
    alone = quiet(t)
    with pytest.raises(KeyboardInterrupt): quiet(t, Resume(tmp_path, t.settings()), Cut())
    resumed = quiet(t, Resume(tmp_path, t.settings()))
    assert losses(alone) == losses(resumed)
    assert alone.percentiles.record() == resumed.percentiles.record() and len(alone.percentiles.steps) == 3*len(alone.dls.train)
    assert alone.additions.record() == resumed.additions.record()

@pytest.mark.parametrize('schedule, wanted', [('constant', [1]*8), ('steps', [1]*4 + [.1]*2 + [.01]*2)])
def test_schedules(schedule, wanted):
    t = small(schedule=schedule, epochs=4, lr=.01, data_args=dict(valid_pct=.9, bs=64))
    learn = quiet(t)
    assert len(learn.dls.train) == 2
    np.testing.assert_allclose(learn.recorder.hps['lr'], np.array(wanted)*.01)

def test_missing_or_small_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('RESNOTES_DATA', str(tmp_path))
    for name in ('cifar10', 'nuclei'):
        with pytest.raises(FileNotFoundError, match='RESNOTES_DATA'): learner(small(data=name, data_args={}))
    monkeypatch.setitem(ex.loaders, 'cifar10', lambda seed, **kwargs: ex.data.digits(seed=seed))
    with pytest.raises(ValueError, match="data must give 50000 training images for this trial, 'cifar10' gave 1437"):
        learner(small(data='cifar10', data_args={}))


# ---- what a run notes
def test_percentiles_are_those_of_numpy():
    seen = []
    class Look(Callback):
        def before_fit(self): self.handle = self.learn.model.blocks[-1].branch.relu1.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach().clone()) if m.training else None)
        def after_fit(self): self.handle.remove()
    learn = quiet(small(epochs=1, callbacks=dict(percentiles=dict(unit=2, percentiles=[15, 50, 85]))), Look())
    want = [np.percentile(x[:,2].cpu().numpy(), [15, 50, 85]) for x in seen]
    np.testing.assert_allclose(learn.percentiles.values, want, rtol=1e-4, atol=1e-6)
    json.dumps(learn.percentiles.record(), allow_nan=False)

def test_percentiles_sample_and_name_their_layer():
    learn = quiet(small(callbacks=dict(percentiles=dict(every=4))))
    n = 3*len(learn.dls.train)
    assert learn.percentiles.steps == list(range(0, n, 4))
    assert learn.percentiles.record()['layer'] == 'blocks.2.branch.relu1'
    with pytest.raises(ValueError, match='layer must be a name'): quiet(small(callbacks=dict(percentiles=dict(layer='nowhere'))))

def test_additions_count_what_rounds_away():
    "Blocks that add a constant: 2^-9 is lost on 1 in bfloat16, 2^-7 is not"
    for power, lost in ((-9, 1), (-7, 0)):
        learn = learner(small(dtype='bfloat16', callbacks=dict(additions={})))
        tower = learn.model.model
        with torch.no_grad():
            for p in tower.parameters(): p.zero_()
            tower.stem.bias.fill_(1)
            for block in tower.blocks: block.branch.conv1.weight[:,:,1,1] = 2.**power/4   # four channels of 1
        assert learn.additions.measure() == lost

def test_additions_need_residual_units():
    with pytest.raises(ValueError, match='model must hold residual units'):
        learn = learner(small(callbacks=dict(additions={})))
        learn.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        learn.additions.before_fit()


# ---- the experiments
class OneStep(Callback):
    "End the fit after one batch"
    order = 90   # after the recorder
    def after_batch(self): raise CancelFitException

@pytest.mark.parametrize('name', experiments)
def test_every_smoke_trial_does_a_step(name, monkeypatch):
    kept = {}
    def once(load):   # arms share their data
        def loader(**kwargs):
            key = json.dumps(kwargs, sort_keys=True)
            if key not in kept: kept[key] = load(**kwargs)
            return kept[key]
        return loader
    for data in ('digits', 'salt'): monkeypatch.setitem(ex.loaders, data, once(ex.loaders[data]))
    monkeypatch.delenv('RESNOTES_DATA', raising=False)
    for t in experiments[name].trials('smoke'):
        learn = learner(t, cbs=OneStep())
        before = [p.clone() for p in learn.model.parameters()]
        with learn.no_bar(), learn.no_logging(): fit(learn, t)
        assert len(learn.recorder.losses) == 1 and learn.recorder.losses[0].isfinite()
        assert any(not torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))

@pytest.mark.parametrize('preset', presets)
def test_trials_are_distinct_and_plain(preset):
    trials = [t for e in experiments.values() for t in e.trials(preset)]
    assert len({t.id for t in trials}) == len(trials)
    for t in trials: assert Trial(**json.loads(json.dumps(t.settings()))) == t
    if preset == 'smoke': assert {t.data for t in trials} <= {'digits', 'salt'}

@pytest.mark.parametrize('preset, machine, limit', [('cpu', 'core', 24), ('gpu', 't4', 55)])
def test_no_experiment_is_longer_than_its_preset_promises(preset, machine, limit):   # also builds every model, without numbers
    for e in experiments.values(): assert ex.minutes(e.trials(preset, [0]), machine)*len(e.trials(preset))/len(e.arms(preset)) <= limit, e.name

def test_arms_differ_in_what_they_say_only():
    for e in experiments.values():
        assert e.question.endswith('?') and e.claims and e.needs.endswith('.')
        for preset in presets:
            first, *rest = e.trials(preset, [0])
            assert all(t.seed == 0 and t.experiment == e.name and t.arm in e.arms(preset) for t in (first, *rest))
            assert len({json.dumps(t.settings() | dict(arm='')) for t in (first, *rest)}) == 1 + len(rest)   # no two arms are one

@pytest.mark.parametrize('preset', presets)
def test_comparisons_name_arms_and_each_arm_is_compared(preset):
    for e in experiments.values():
        arms, pairs = list(e.arms(preset)), e.pairs(preset)
        assert {a for pair in pairs for a in pair} == set(arms) and len(set(map(frozenset, pairs))) == len(pairs), e.name

@pytest.mark.parametrize('name, pair', [
    ('degradation', ('plain 56', 'plain 20')), ('degradation', ('residual 56', 'residual 20')), ('degradation', ('residual 56', 'plain 56')),
    ('xavier-vs-he-22-30', ('he 30', 'xavier 30')), ('taki-cifar', ('he', 'depth-scaled')), ('taki-cifar', ('he, batch norm', 'depth-scaled')),
    ('samplers', ('one more block', 'two more convolutions')), ('blocks-at-13', ('60 blocks', '40 blocks')), ('depth-vs-width', ('wrn_16_4', 'preact164')),
    ('bn-placement-init', ('blocks, he_normal', 'final, he_normal')), ('bn-placement-init', ('final, he_normal', 'final, glorot_normal')),
    ('balanced-init', ('harmonic 60', 'he 60')), ('bn-learning-rate', ('none 0.3', 'batch norm 0.3')), ('activation-placement', ('preact 164', 'original 164'))])
def test_comparisons_are_those_of_the_claims(name, pair):
    assert set(pair) <= set(experiments[name].arms('cpu')), list(experiments[name].arms('cpu'))
    assert pair in experiments[name].pairs('cpu')

def test_seeds_are_the_outer_loop():
    e = experiments['covariate-shift']
    assert [(t.seed, t.arm) for t in e.trials('smoke', (4, 5))] == [(4, 'batch norm'), (4, 'none'), (5, 'batch norm'), (5, 'none')]
    with pytest.raises(ValueError, match="preset must be one of 'smoke', 'cpu', 'gpu', got 'tiny'"): e.trials('tiny')

def test_equal_cost_of_the_cardinalities():
    for preset in ('cpu', 'gpu'):
        ts = {t.arm: ex.work(t).multiply_adds for t in experiments['cardinality'].trials(preset, [0])}
        base = ts[next(iter(ts))]
        for arm, cost in ts.items(): assert abs(cost/base - round(cost/base)) < .15 and round(cost/base) in (1, 2), (arm, cost/base)

def test_work_of_a_unet_is_what_its_chapter_counts():
    from resnotes import unet
    t = small(data='salt', data_args=dict(n=50, size=51), model='unet', model_args=dict(name='strict_unet48'), loss='iou', init='he_normal')
    assert ex.work(t).multiply_adds == sum(c.multiply_adds for c in unet.costs(unet.build('strict_unet48'), 51, 51))
    assert ex.work(t)[1:] == (48, 40, 1)
