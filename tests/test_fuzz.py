"""Plausible misuse: right calls with one argument replaced by what a tired person might pass.

Each call must return, or raise a ValueError or a TypeError that names the argument. A few hundred calls run with the tests; `RESNOTES_FUZZ=50000`
runs as many, drawn at random, as the nightly workflow does."""
import math, os, random, re, signal, warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from resnotes import blocks, checks, metrics, networks, resnet, samplers, shares, stats, summands, unet
from resnotes.trial import Trial

seconds = 10   # a call that takes longer hangs
runs = pd.DataFrame(dict(arm=['a', 'a', 'b', 'b'], seed=[0, 1, 0, 1], preset='cpu', final_accuracy=[.5, .6, .7, .8]))
tower, mask = dict(depth=2, width=4), torch.tensor([[[0., 1.], [1., 0.]]])
trial = dict(experiment='x', arm='a', preset='smoke', seed=0, data='digits', model='taki_tower', epochs=1, lr=.1, model_args=tower, momentum=.9, wd=0., clip=1.,
             init='he_normal', loss='cross_entropy', schedule='constant', dtype='float32', optimizer='sgd')

# function -> arguments of a right call
calls = {
    summands.harmonic_gains: dict(depth=3, correlation=.5), summands.chain_shares: dict(gains=[1., .5]), summands.chain_gradients: dict(gains=[1., .5]),
    summands.branch_convs: dict(block=blocks.StrictBlock(2)), summands.apply_gains: dict(model=nn.Sequential(blocks.StrictBlock(2)), gains=[.5]),
    shares.own_variance: dict(layer=nn.Linear(2, 2)),
    networks.n_parameters: dict(model=nn.Linear(2, 2)), networks.TowerConfig: tower | dict(kernel_size=3, stride=1, n_classes=10, block='strict', placement='none', negative_slope=.1),
    networks.RowTransformerConfig: dict(layers=1, width=4, heads=2, rows=8, n_classes=3), networks.config: dict(name_or_config='tower'), networks.example_shape: dict(name_or_config='tower'),
    resnet.ResNetConfig: dict(blocks=(1, 1), width=4, stem_width=4, block='basic', order='original', kernel_sizes=(3, 3), dropout=.1, drop_path_rate=.1),
    resnet.VGGConfig: dict(convs=(1, 1), width=4, hidden=4, dropout=.1), resnet.wide_resnet: dict(n=10, k=1),
    blocks.Conv: dict(in_channels=2, out_channels=2, kernel_size=3, stride=1, groups=1), blocks.drop_path_rates: dict(depth=3, last=.5),
    stats.outcomes: dict(runs=runs), stats.summarize: dict(runs=runs, of='final_accuracy', by='arm', level=.9), stats.paired: dict(runs=runs, a='a', b='b', of='final_accuracy', level=.9),
    Trial: trial,
    unet.UNetConfig: dict(blocks=(1, 1, 1), width=2, placement='none', down='conv3', up='nearest', convs=1, block='strict', skip='add', in_channels=1, out_channels=1, negative_slope=.1),
    unet.Join: dict(skip='add', channels=2),
    samplers.DownConv: dict(in_channels=2, out_channels=2, kernel_size=3, convs=1), samplers.DownPool: dict(in_channels=2, out_channels=2, mode='blur', convs=1),
    samplers.UpConv: dict(in_channels=2, out_channels=2, kernel_size=3, convs=1), samplers.ResizeConv: dict(in_channels=2, out_channels=2, mode='nearest', convs=1),
    samplers.SubPixel: dict(in_channels=2, out_channels=2, convs=1), samplers.downsampler: dict(name='conv3', in_channels=2, out_channels=2, convs=1),
    samplers.upsampler: dict(name='nearest', in_channels=2, out_channels=2, convs=1), samplers.tap_counts: dict(kernel_size=3, stride=2, padding=1, dilation=1),
    samplers.flat_normal: dict(layer=nn.Conv2d(2, 2, 3), gain=1., mode='fan_in', generator=None),
    metrics.mask_counts: dict(pred=mask, target=mask), metrics.iou: dict(pred=mask, target=mask, over='image'), metrics.accuracy: dict(pred=mask, target=mask),
    metrics.tgs_score: dict(pred=mask, target=mask), metrics.confusion: dict(pred=mask.long(), target=mask.long(), classes=2), metrics.mask_metric: dict(score=metrics.iou, cut=.5),
    metrics.class_metric: dict(score=metrics.mean_iou, classes=2),
    checks.check_tensor: dict(x=torch.ones(2)), checks.check_numbers: dict(gains=[1., 2.]), checks.check_count: dict(depth=2), checks.check_positive: dict(fan=2.),
    checks.check_model: dict(model=nn.ReLU()), checks.check_images: dict(pred=torch.zeros(1, 2, 2)), checks.check_mask: dict(mask=torch.zeros(1, 2, 2)),
}
misuse = [None, True, 10**400, 'text', '', b'bytes', 1.5, -1, 0, 3, 10**30, -0.5, math.nan, math.inf, [], [1., 2.], (1, 'a'), {}, {'a': 1}, np.ones(3), np.float32(2), np.int64(3), np.array([]),
          torch.tensor(1.), torch.tensor(2), torch.ones(2, 3), torch.empty(0), torch.ones(3).half(), torch.ones(3)*math.nan, torch.ones(2, 4).t(), torch.ones(2, device='meta'),
          nn.ReLU, nn.ReLU(), len, object(), pd.DataFrame(), torch.Generator(), range(3)]


called = {'name_or_config': 'name|network', 'n': 'n|blocks', 'k': 'k|width'}   # what a message may call an argument

def too_long(number, frame): raise TimeoutError(f'longer than {seconds} s')

def ending(function, **changes):
    "None when a call with some arguments replaced ends as it must, or what it did instead"
    names = '|'.join(called.get(name, name) for name in changes)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            function(**calls[function] | changes)
    except (TypeError, ValueError) as e:
        if not re.search(rf'\b({names})\b', str(e)): return f'{type(e).__name__}: {e}'
    except Exception as e: return f'{type(e).__name__}: {e}'
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

every = [(f, name, i) for f, good in calls.items() for name in good for i in range(len(misuse))]
wanted = int(os.environ.get('RESNOTES_FUZZ', 0))

def told(found): return '\n'.join(f'{f.__name__}({name}={misuse[i]!r:.60}): {said:.150}' for (f, name, i), said in found.items())

@pytest.mark.parametrize('function', calls, ids=lambda f: f'{f.__module__}.{f.__name__}')
def test_one_wrong_argument_is_named(function):
    found = {case: said for case in every if case[0] is function and (said := ending(function, **{case[1]: misuse[case[2]]}))}
    assert not found, told(found)

def test_the_right_calls_are_right():
    for function, good in calls.items(): function(**good)

@pytest.mark.skipif(not wanted, reason='set RESNOTES_FUZZ to a number of calls')
def test_two_wrong_arguments_name_one_of_them():
    rng, found, counted = random.Random(0), [], Counter()
    functions = [f for f, good in calls.items() if len(good) > 1]
    for _ in range(wanted):
        f = rng.choice(functions)
        changes = {name: rng.choice(misuse) for name in rng.sample(list(calls[f]), 2)}
        if said := ending(f, **changes): found.append((f.__name__, changes, said))
        counted[f.__name__] += 1
    assert not found, '\n'.join(map(str, found[:20]))
    assert counted.total() == wanted
