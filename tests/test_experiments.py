"Every experiment: its trials run, its comparisons are those of the question"
import json, math
from dataclasses import asdict

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException

from resnotes import experiments as ex, networks, trial as trials
from resnotes.experiments import experiments, recorded_minutes
from resnotes.records import append
from resnotes.trial import Trial, build_learner, fit_trial, presets


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
    for data in ('digits', 'salt'): monkeypatch.setitem(trials.loaders, data, once(trials.loaders[data]))
    monkeypatch.delenv('RESNOTES_DATA', raising=False)
    for t in experiments[name].trials('smoke'):
        learn = build_learner(t, cbs=OneStep())
        before = [p.clone() for p in learn.model.parameters()]
        with learn.no_bar(), learn.no_logging(): fit_trial(learn, t)
        overflows = t.experiment == 'rescue' and (t.model, t.init) == ('taki_tower', 'he_normal')   # which is what it asks about
        assert len(learn.recorder.losses) == 1 and (learn.recorder.losses[0].isfinite() or overflows)
        assert any(not torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))

@pytest.mark.parametrize('preset', presets)
def test_trials_are_distinct_and_plain(preset):
    trials = [t for e in experiments.values() for t in e.trials(preset)]
    assert len({t.id for t in trials}) == len(trials)
    for t in trials: assert Trial(**json.loads(json.dumps(asdict(t)))) == t
    if preset == 'smoke': assert {t.data for t in trials} <= {'digits', 'salt'}

@pytest.mark.parametrize('preset', ['cpu', 'gpu'])
def test_every_network_can_be_built(preset):
    "On shapes alone; the configurations repeat, so each is built once. Those of 'smoke' do a step above"
    nets = {(t.model, json.dumps(t.model_args, sort_keys=True), t.loss == 'cross_entropy') for e in experiments.values() for t in e.trials(preset, [0])}
    for name, fields, labels in nets:
        with torch.device('meta'): networks.build(name, **json.loads(fields), **({'n_classes': 10} if labels else {'out_channels': 1}))

def test_arms_differ_in_what_they_say_only():
    for e in experiments.values():
        assert e.question.endswith('?') and e.needs.endswith('.')
        for preset in presets:
            first, *rest = e.trials(preset, [0])
            assert all(t.seed == 0 and t.experiment == e.name and t.arm in e.arms(preset) for t in (first, *rest))
            assert len({json.dumps(asdict(t) | dict(arm='')) for t in (first, *rest)}) == 1 + len(rest)   # no two arms are one

@pytest.mark.parametrize('preset', presets)
def test_comparisons_name_arms_and_each_arm_is_compared(preset):
    for e in experiments.values():
        arms, pairs = list(e.arms(preset)), e.pairs(preset)
        compared = set(arms) if len(arms) > 1 else set()
        assert {a for pair in pairs for a in pair} == compared and len(set(map(frozenset, pairs))) == len(pairs), e.name

@pytest.mark.parametrize('name, pair', [
    ('degradation', ('plain 56', 'plain 20')), ('degradation', ('residual 56', 'residual 20')), ('degradation', ('residual 56', 'plain 56')),
    ('xavier-vs-he-22-30', ('he 30', 'xavier 30')), ('taki-cifar', ('he', 'depth-scaled')), ('taki-cifar', ('he, batch norm', 'depth-scaled')),
    ('samplers', ('one more block', 'two more convolutions')), ('blocks-at-13', ('60 blocks', '40 blocks')), ('depth-vs-width', ('wrn_16_4', 'preact1001')), ('depth-vs-width', ('wrn_40_2', 'wrn_16_2')),
    ('bn-placement-init', ('blocks, he_normal', 'final, he_normal')), ('bn-placement-init', ('final, he_normal', 'final, glorot_normal')),
    ('bn-learning-rate', ('none 0.3', 'batch norm 0.3')), ('activation-placement', ('preact 164', 'original 164')),
    ('digits-he-depth-scaled', ('depth-scaled', 'he'))])
def test_comparisons_are_those_of_the_claims(name, pair):
    assert set(pair) <= set(experiments[name].arms('cpu')), list(experiments[name].arms('cpu'))
    assert pair in experiments[name].pairs('cpu')

def test_a_rescue_is_compared_with_its_network_as_built_at_the_best_rates():
    e = experiments['rescue']
    pairs = e.pairs('cpu', scanned(lambda t: abs(math.log10(t.lr) + (2 if t.init == 'default' else 3))))
    assert ('norm-free tower, he_normal, adam, 0.001', 'norm-free tower, default, adam, 0.01') in pairs
    assert ('post-norm transformer, gpt2, sgd, 0.001', 'post-norm transformer, default, sgd, 0.01') in pairs
    assert len(pairs) == 2*(3 + 2 + 7 + 2) and all(b.split(', ')[1] == 'default' for a, b in pairs)
    assert all(a.split(', ')[::2] == b.split(', ')[::2] for a, b in pairs), 'the same network and optimiser'
    every = e.pairs('cpu')
    assert len(every) == 5*len(pairs) and all(a.split(', ')[3] == b.split(', ')[3] for a, b in every)

def test_seeds_are_the_outer_loop():
    e = experiments['covariate-shift']
    assert [(t.seed, t.arm) for t in e.trials('smoke', (4, 5))] == [(4, 'batch norm'), (4, 'none'), (5, 'batch norm'), (5, 'none')]
    with pytest.raises(ValueError, match="preset must be one of 'smoke', 'cpu', 'gpu', got 'tiny'"): e.trials('tiny')

def test_equal_cost_of_the_cardinalities():
    for preset in ('cpu', 'gpu'):
        def cost(t):
            with torch.device('meta'): return networks.multiply_adds(networks.build(t.model, **t.model_args), 3, 32, 32)
        ts = {t.arm: cost(t) for t in experiments['cardinality'].trials(preset, [0])}
        base = ts[next(iter(ts))]
        for arm, cost in ts.items(): assert abs(cost/base - round(cost/base)) < .15 and round(cost/base) in (1, 2), (arm, cost/base)


# ---- scans
def scanned(outcomes, preset='cpu'):
    "Records of the first seed of `rescue`, with this loss by arm"
    trials = experiments['rescue'].trials(preset)
    return pd.DataFrame([asdict(t) | dict(id=t.id, final_epoch_loss=outcomes(t)) for t in trials])

def test_a_scan_begins_with_its_first_seeds_and_ends_with_the_best_rates():
    e = experiments['rescue']
    first = e.trials('cpu')
    assert {t.seed for t in first} == {0} and len(first) == len(e.arms('cpu'))
    runs = scanned(lambda t: math.nan if t.lr == 1e-2 else abs(math.log10(t.lr) + 3))
    rest = e.trials('cpu', runs=runs)[len(first):]
    groups = {e.group(t.arm) for t in first}
    assert len(rest) == 4*len(groups) and {t.lr for t in rest} == {1e-3} and {t.seed for t in rest} == {1, 2, 3, 4}
    assert e.trials('cpu', runs=runs.iloc[1:]) == first, 'an unfinished scan knows no best rate'
    assert e.trials('smoke', runs=runs) == e.trials('smoke')

def test_a_group_in_which_every_rate_diverged_still_gets_its_seeds():
    rest = experiments['rescue'].trials('cpu', runs=scanned(lambda t: math.inf))
    assert len(rest) > len(experiments['rescue'].trials('cpu'))


# ---- what it costs
def test_minutes_are_those_of_the_records(tmp_path):
    a, b = experiments['covariate-shift'].trials('smoke', [0])
    for t, seconds in ((a, 60.), (b, 120.)): append(tmp_path/'covariate-shift.jsonl', asdict(t) | dict(id=t.id, seconds=seconds))
    seeds = experiments['covariate-shift'].seeds[0]
    assert recorded_minutes('covariate-shift', 'smoke', tmp_path) == 3*seeds
    assert math.isnan(recorded_minutes('covariate-shift', 'cpu', tmp_path)) and math.isnan(recorded_minutes('samplers', 'cpu', tmp_path))

def test_a_scan_does_not_look_at_runs_of_settings_that_it_no_longer_has():
    e = experiments['rescue']
    runs = scanned(lambda t: abs(math.log10(t.lr) + 3))
    first = e.trials('cpu', [*range(e.scan)])
    assert len(e.scanned('cpu', runs)) == len(first) and len(e.trials('cpu', runs=runs)) > len(first)
    old = runs.assign(id=[f'{k:012}' for k in range(len(runs))])   # the same arms and seeds, of other trials
    assert len(e.scanned('cpu', old)) == 0
