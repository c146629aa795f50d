"The experiments on the plateau, and what they need: slopes, gradients changed on the way back, ends held, data that vary, ids that stay"
import json, math
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from torch import nn

from resnotes import plateaus
from resnotes.blocks import SlopedReLU, StrictBlock
from resnotes.callbacks import EvenGradients
from resnotes.data import digits
from resnotes.design import before_rate, last_word
from resnotes.experiments import experiments
from resnotes.networks import TowerConfig, build
from resnotes.plateaus import but_start, suspects
from resnotes.resume import Resume
from resnotes.summands import apply_gains, branch_convs
from resnotes.trial import Trial, build_learner, fit_trial
from resnotes.unet import UNetConfig

NAMES = [name for name in experiments if name.startswith('plateau-')]
SMALL = dict(experiment='x', arm='a', preset='smoke', seed=0, data='digits', data_args=dict(valid_pct=.8, bs=64), model='tower',
             model_args=dict(depth=6), epochs=1, lr=.03)

def small(**changes): return Trial(**SMALL | changes)

def quiet(trial, *cbs):
    learn = build_learner(trial, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): fit_trial(learn, trial)
    return learn

def losses(learn): return [loss.item() for loss in learn.recorder.losses]

class OneStep(Callback):
    order = 90
    def after_batch(self): raise CancelFitException


# --- experiments
def test_they_stand_among_the_experiments(): assert len(NAMES) == 8

@pytest.mark.parametrize('name', NAMES)
def test_every_smoke_trial_does_a_step(name):
    for t in experiments[name].trials('smoke'):
        learn = build_learner(t, cbs=OneStep())
        before = [p.clone() for p in learn.model.parameters()]
        with learn.no_bar(), learn.no_logging(): fit_trial(learn, t)
        assert len(learn.recorder.losses) == 1 and learn.recorder.losses[0].isfinite()
        assert any(not torch.equal(p, q) for p, q in zip(before, learn.model.parameters())), t.arm

@pytest.mark.parametrize('name', NAMES)
def test_arms_are_distinct_and_scans_have_groups_of_several_rates(name):
    for preset in ('smoke', 'cpu', 'gpu'):
        trials = experiments[name].trials(preset, [0])
        assert len({json.dumps(asdict(t) | dict(arm='')) for t in trials}) == len(trials)
        assert all(t.arm.endswith(f', {t.lr:g}') for t in trials)
    groups = pd.Series([before_rate(t.arm) for t in experiments[name].trials('cpu', [0])]).value_counts()
    assert set(groups) <= {3, 4, 5, 8} and (8 not in set(groups) or name == 'plateau-cifar')

@pytest.mark.parametrize('name', NAMES)
def test_arms_are_compared_at_one_rate(name):
    e = experiments[name]
    arms, pairs = list(e.arms('cpu')), e.pairs('cpu')
    assert {a for pair in pairs for a in pair} == set(arms) and len(set(map(frozenset, pairs))) == len(pairs)
    if name in plateaus.map_names: assert all(but_start(a) == but_start(b) for a, b in pairs)
    if 'deep' in name: assert all(last_word(a) == last_word(b) for a, b in pairs)

def test_each_suspect_changes_one_thing():
    arms = plateaus.suspect_arms('cpu')
    base = arms['he, as it is, 0.1']
    assert base == dict(model_args=dict(depth=60), init='he_normal', lr=.1)
    for name, fields in suspects.items():
        rate = plateaus.rates_of.get(name, plateaus.sgd_rates)[2]
        changed = {k for k, v in arms[f'he, {name}, {rate:g}'].items() if k != 'lr' and v != base.get(k)}
        assert len(changed) == (0 if name == 'as it is' else 1), name

def test_suspects_keep_what_all_runs_share():
    by_arm = {t.arm: t for t in experiments['plateau-interventions'].trials('cpu', [0])}
    assert set(by_arm['he, gradients evened, 0.1'].callbacks) == {'batch_statistics', 'even_gradients'}
    assert by_arm['spread 2, 30 blocks, 0.1'].data_args == dict(bs=32, spread=2)
    assert by_arm['he, slope 0.4, 0.1'].model_args == dict(depth=60, negative_slope=.4)


# --- ids
def test_a_field_that_came_later_does_not_change_ids():
    "These are ids of trials that were recorded before `clip` was a field"
    old = Trial('lesson', arm='depth-scaled', preset='smoke', seed=0, epochs=2, lr=.05, data='digits', data_args=dict(valid_pct=.8),
                model='taki_tower', model_args=dict(depth=20, width=8), init='depth_scaled_normal', init_args=dict(rest='lecun_normal'))
    assert old.id == '6aa7d2679ec4' == replace(old, clip=0).id
    assert experiments['taki-cifar'].trials('gpu')[0].id == '74f7049beb8a'
    assert len({old.id, replace(old, clip=1).id, replace(old, clip=2).id}) == 3
    assert Trial(**json.loads(json.dumps(asdict(old)))).id == old.id
    with pytest.raises(ValueError, match='clip must be'): replace(old, clip=-1)


# --- slopes
@pytest.mark.parametrize('slope', [.2, 1.])
def test_a_slope_keeps_the_variance_of_a_branch(slope):
    torch.manual_seed(0)
    x, plain, sloped = torch.randn(64, 32, 12, 12), [], []
    for _ in range(6):
        a, b = StrictBlock(32), StrictBlock(32, negative_slope=slope)
        b.load_state_dict(a.state_dict())
        for kind, block in ((plain, a), (sloped, b)):
            apply_gains(block, [1.])
            for conv in branch_convs(block): conv.padding_mode = 'circular'
            kind.append(block.branch(x).var((0, 2, 3), correction=0).mean().item())
    assert sum(sloped)/6 == pytest.approx(sum(plain)/6, rel=.06) == pytest.approx(1, rel=.06)

def test_slopes_reach_every_relu_of_a_network():
    for config in (TowerConfig(3, negative_slope=.3), UNetConfig((1, 1, 1), negative_slope=.3), UNetConfig((1, 1, 1), block='original', negative_slope=.3)):
        model = build(config)
        found = [m.negative_slope for m in model.modules() if isinstance(m, SlopedReLU)]
        assert len(found) == 6 and set(found) == {.3} and not any(isinstance(m, nn.ReLU) for m in model.modules())
    plain = build(TowerConfig(3))
    assert not any(isinstance(m, SlopedReLU) for m in plain.modules())
    for call in (lambda: TowerConfig(3, negative_slope=2), lambda: TowerConfig(3, block='taki', negative_slope=.1), lambda: UNetConfig((1, 1, 1), negative_slope=-1)):
        with pytest.raises(ValueError, match='negative_slope must be'): call()


# --- on the way back alone
@pytest.mark.parametrize('growth', [1., 1.3])
@pytest.mark.parametrize('placement', ['none', 'blocks'])
def test_gradients_have_the_growth_asked_for(growth, placement):
    learn = build_learner(small(model_args=dict(depth=8, placement=placement)), cbs=EvenGradients(growth))
    model, x = learn.model.train(), torch.randn(32, 1, 8, 8)
    plain = model(x)
    learn.even_gradients.before_batch()
    assert torch.equal(plain, model(x))
    sizes, hooks = {}, []
    for k, m in enumerate(model.units):   # behind the callback's own hook, so it sees what that hook returns
        def look(m, args, k=k): args[0].register_hook(lambda g: sizes.__setitem__(k, g.square().mean().sqrt().item()))
        hooks.append(m.register_forward_pre_hook(look))
    (model(x)*torch.randn(32, 10)).sum().backward()
    for k in range(8): assert sizes[k]/sizes[7] == pytest.approx(growth**(7 - k), rel=1e-3)
    learn.even_gradients.after_fit()
    assert not any(len(m._forward_pre_hooks) > 1 for m in model.units)

def test_a_run_with_even_gradients_differs_from_its_second_step_on():
    a, b = losses(quiet(small())), losses(quiet(small(callbacks=dict(even_gradients={}))))
    assert a[0] == b[0] and a[1] != b[1]

@pytest.mark.parametrize('init', ['he_normal', 'zero'])
def test_held_ends_keep_their_size_and_nothing_else(init):
    t = small(init=init, lr=.1, epochs=2)
    start = build_learner(t).model
    held = quiet(replace(t, callbacks=dict(hold_scale={})))
    free = quiet(t)
    sizes = [[branch_convs(u)[-1].weight.norm().item() for u in m.units] for m in (start, held.model, free.model)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-4), 'an end that starts at zero stays there'
    assert sizes[2] != pytest.approx(sizes[0], rel=1e-3)
    inner = [[branch_convs(u)[0].weight.norm().item() for u in m.units] for m in (start, held.model)]
    still = inner[1] == pytest.approx(inner[0], rel=1e-4)
    assert still == (init == 'zero'), 'behind an end held at zero nothing learns either'

class Cut(Callback):
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == (1, 1): raise KeyboardInterrupt

def test_a_killed_intervention_goes_on_to_the_same_bits(tmp_path):
    t = small(epochs=3, callbacks=dict(hold_scale={}, even_gradients=dict(growth=1.1)), clip=1, optimizer='sgd', schedule='warm_up')
    alone = quiet(t)
    with pytest.raises(KeyboardInterrupt): quiet(t, Resume(tmp_path, asdict(t)), Cut())
    assert losses(quiet(t, Resume(tmp_path, asdict(t)))) == losses(alone)


# --- steps
def test_larc_moves_every_layer_by_the_rate_times_its_size():
    t = small(optimizer='larc', momentum=0, lr=.01)
    before = build_learner(t).model
    after = quiet(t, OneStep()).model
    for (name, p), q in zip(before.named_parameters(), after.parameters()):
        if p.any(): assert ((q - p).norm()/p.norm()).item() == pytest.approx(.01, rel=1e-3), name

def test_clipping_bounds_the_first_step():
    def step(**changes):
        t = small(momentum=0, lr=.1, **changes)
        before, after = build_learner(t).model, quiet(t, OneStep()).model
        return math.sqrt(sum((p - q).square().sum().item() for p, q in zip(before.parameters(), after.parameters())))
    assert step(clip=.01) == pytest.approx(.001, rel=1e-3) and step() > .002


# --- data
def test_spread_scales_what_tells_an_image_from_its_class():
    def parts(spread):
        dls = digits(valid_pct=.5, spread=spread, bs=800)
        order = dls.train.new(shuffle=False, drop_last=False)
        x, y = (torch.cat(part).as_subclass(torch.Tensor) for part in zip(*order))
        assert x.mean().abs() < 1e-4 and abs(x.std() - 1) < 1e-4
        means = torch.stack([x[y == c].mean(0) for c in range(10)])[y]
        return ((x - means).square().sum()/(means - means.mean(0)).square().sum()).item(), x
    (one, x1), (half, _), (two, _) = map(parts, (1, .5, 2))
    assert half/one == pytest.approx(1/4, rel=.06) and two/one == pytest.approx(4, rel=.06)   # half of the images have other means
    torch.testing.assert_close(parts(1.)[1], x1)
    with pytest.raises(ValueError, match='spread must be'): digits(spread=-1)
