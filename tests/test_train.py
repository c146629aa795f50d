"Edge cases of the trainer: tower, runs, tables, and what a terminal sees"
import math, os, subprocess, sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

import resnotes.train as train
from resnotes.data import cifar10, digits
from resnotes.train import (ResidualTower, bars_visible, compare_inits, describe, init_run, init_tower,
                            step_ratio, summarise, visible_progress)

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
