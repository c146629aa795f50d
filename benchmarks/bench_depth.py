"What grows with depth, and how: towers of 10 to 1,000 strict blocks, and the search for branches up to 10,000"
import statistics, time

import numpy as np
import torch
from torch.nn import functional as F

from resnotes import networks
from resnotes.branches import residual_branches
from resnotes.memory import peak_bytes
from resnotes.report import audit
from resnotes.starts import initialize
from timing import Pair, Value, row, seconds


def tower(depth):
    "A tower and a step of it"
    model = networks.build(f'tower{depth}')
    x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
    def step():
        F.cross_entropy(model(x), y).backward()
        model.zero_grad()
    return model, x, step


def middle(run, times):
    "Median of processor seconds, after one call that does not count"
    run()
    return statistics.median(seconds(run) for _ in range(times))


@row('growth from 10 to 1,000 blocks, as a power of the depth', reach=1.1)
def growth(smoke):
    "Slope of the line through the last three points, both axes logarithmic"
    depths = (4, 8, 16) if smoke else (10, 30, 100, 300, 1000)
    found = {'time of a step': [], 'most bytes held in a step': [], "initialize(rule='lsuv')": [],
             "initialize(), depth-scaled": [], 'audit': [], 'search for branches': []}
    for depth in depths:
        model, x, step = tower(depth)
        runs = {'time of a step': step,
                "initialize(rule='lsuv')": lambda: initialize(model, x, rule='lsuv'),
                'initialize(), depth-scaled': lambda: initialize(model, x),
                'audit': lambda: audit(model, x), 'search for branches': lambda: residual_branches(model, x)}
        for name, run in runs.items(): found[name].append(middle(run, 3 if depth < 100 and not smoke else 1))
        found['most bytes held in a step'].append(peak_bytes(step))
    for name, values in found.items():
        slopes = np.polyfit(np.log(depths[-3:]), np.log(values[-3:]), 1)[:1]
        yield Value('depth', slopes.tolist(), 'power', ours_is=name,
                    more=dict(depths=list(depths), values=values))


@row('one pass that looks at a tower of strict blocks', reach=1.3)
def looking(smoke):
    "The audit, and the search for branches, over a forward and backward pass"
    for depth in (8,) if smoke else (100, 1000):
        model, x, step = tower(depth)
        yield Pair('forward and backward pass', lambda: audit(model, x), step, runs=5,
                   ours_is=f'audit, {depth} blocks', profile='functions')
    for depth in (8,) if smoke else (1000, 10_000):
        model, x, step = tower(depth)
        yield Pair('forward and backward pass', lambda: residual_branches(model, x), step, runs=3,
                   ours_is=f'residual_branches, {depth:,} blocks', profile='functions')
