"What the finding on He's and depth-scaled weights rests on: the tower, its two starts, diverging runs, intervals"
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from resnotes.lab import history_of
from resnotes.networks import build
from resnotes.starts import initialize
from resnotes.stats import summarize
from resnotes.trial import Trial, build_learner, fit_trial

def tower(rule='depth_scaled_normal', seed=0, **config):
    model, draw = build('taki_tower', **config), torch.Generator().manual_seed(seed)
    x = torch.randn(2, model.config.in_channels, 8, 8)
    initialize(model, x, rule=rule, rest='lecun_normal', generator=draw)
    return model

@pytest.mark.parametrize('normed', [False, True])
def test_the_tower_is_blind_to_memory_layout(normed):
    model = tower(depth=3, in_channels=3, batch_norm=normed).eval()
    x = torch.randn(2, 3, 8, 8)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (x.contiguous(memory_format=torch.channels_last), turned):
        torch.testing.assert_close(model(view), model(x))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_close(dtype):
    model, x = tower(depth=3), torch.randn(2, 1, 8, 8)
    want = model(x)
    torch.testing.assert_close(model.to(dtype)(x.to(dtype)).float(), want, rtol=.1, atol=.1)

def test_blocks_add_to_what_enters():
    block, x = tower('he_normal', depth=1, width=4).units[0], torch.randn(8, 4, 3, 3)
    assert (block(x) >= x).all() and (block(x) > x).any()

def test_the_starts_differ_by_one_factor_in_the_blocks_alone():
    he, scaled = tower('he_normal', depth=5), tower(depth=5)
    for (name, a), b in zip(he.named_parameters(), scaled.parameters()):
        torch.testing.assert_close(a, b*math.sqrt(2*5) if name.startswith('blocks') else b)
        if name.endswith('bias'): assert not a.any()

def test_batch_norm_starts_as_the_identity_beside_hes_weights():
    model = tower('he_normal', depth=2, batch_norm=True)
    assert all((unit.branch.norm1.weight == 1).all() for unit in model.units)

def test_a_run_that_diverges_is_recorded_to_the_end():
    trial = Trial('divergence', arm='he', preset='smoke', seed=0, data='digits', data_args=dict(bs=256),
                  model='taki_tower', model_args=dict(depth=2, width=4), epochs=2, lr=1e30, optimizer='adam')
    learn = build_learner(trial)
    with learn.no_bar(), learn.no_logging(): fit_trial(learn, trial)
    run = history_of(learn.recorder)
    assert len(run['valid_loss']) == len(run['accuracy']) == 2
    assert len(run['step_loss']) == 2*len(learn.dls.train)
    assert not math.isfinite(run['valid_loss'][-1]) and run['accuracy'][-1] < .2
    assert run['step_loss'][0] < 1e3   # recorded as it was, not averaged with what came later

@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=9), level=st.floats(.5, .99))
def test_the_interval_is_students(values, level):
    runs = pd.DataFrame({'arm': 'he', 'final_accuracy': values})
    mean, half = summarize(runs, level=level).loc['he', ['mean', 'half_width']]
    if np.std(values) > 1e-6:
        ci = stats.ttest_1samp(values, 0).confidence_interval(level)
        assert np.allclose([mean - half, mean + half], [ci.low, ci.high], atol=1e-6)

def test_one_run_has_no_interval():
    runs = pd.DataFrame({'arm': ['he'], 'final_accuracy': [.3]})
    assert math.isnan(summarize(runs).half_width['he'])
    with pytest.raises(ValueError, match='of must be one of'): summarize(runs, of='beauty')
    with pytest.raises(ValueError, match='level must'): summarize(runs, level=1.)
