"""Four ways to find a learning rate, beside the largest at which sixty real steps stay tame, on the small digits.

    python benchmarks/bench_rates.py [RECORD.jsonl [SETTINGS]]

Asked are the rehearsal, 2(1+m)/lambda of the Hessian at the start, and fastai's lr_find with its four suggestions. After each, the network is
trained for 120 steps at the rate that it suggests (half of an edge); the score is the mean loss of the last twenty. One line per setting, appended to the record, whose settings are not
run again; fewer SETTINGS than 44 are spread over all."""
import json, math, os, sys, time
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from resnotes.init import he_normal, init_layers
from resnotes.networks import build
from resnotes.rate import rehearse
from resnotes.sensitivity import hessian_edge
from resnotes.starts import initialize

torch.set_num_threads(1)


def mlp(depth, norm=False, curve=nn.ReLU):
    layers, inputs = [nn.Flatten()], 64
    for _ in range(depth):
        layers += [nn.Linear(inputs, 64), *([nn.BatchNorm1d(64)] if norm else []), curve()]
        inputs = 64
    return nn.Sequential(*layers, nn.Linear(64, 10))


def convs(norm, depth=2):
    layers, inputs = [], 1
    for _ in range(depth):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
        inputs = 8
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))


def he(model):
    init_layers(model, he_normal)
    return model


def scaled(model):
    initialize(model, torch.randn(4, 1, 8, 8))
    return model


nets = {'mlp 1': lambda: mlp(1), 'mlp 3': lambda: mlp(3), 'mlp 3 he': lambda: he(mlp(3)), 'mlp 3 norms': lambda: mlp(3, True), 'mlp 6 norms': lambda: mlp(6, True),
        'mlp 3 tanh': lambda: mlp(3, curve=nn.Tanh), 'convs': lambda: convs(False), 'convs norms': lambda: convs(True), 'convs 4 he': lambda: he(convs(False, 4)),
        'tower 4': lambda: build('tower', depth=4), 'tower 4 no norms': lambda: scaled(build('tower', depth=4, placement='none', batch_norm=False))}
optimizers = {'sgd': (torch.optim.SGD, 0.), 'sgd .9': (partial(torch.optim.SGD, momentum=.9), .9), 'adam': (torch.optim.Adam, None), 'adamw': (partial(torch.optim.AdamW, weight_decay=.01), None)}


def data():
    from sklearn.datasets import load_digits
    d = load_digits()
    order = torch.randperm(len(d.target), generator=torch.Generator().manual_seed(1))
    return torch.tensor(d.images[:, None]/16, dtype=torch.float32)[order], torch.tensor(d.target)[order]


def train(make, optimizer, lr, batches, steps=120):
    "Mean loss of the last twenty steps; infinite where it is not finite"
    torch.manual_seed(0)
    model, losses = make().train(), []
    opt = optimizer(model.parameters(), lr=lr)
    for k in range(steps):
        x, y = batches[k%len(batches)]
        value = F.cross_entropy(model(x), y)
        opt.zero_grad()
        value.backward()
        opt.step()
        losses.append(value.item())
        if not math.isfinite(losses[-1]): return math.inf
    return sum(losses[-20:])/20


def found_by_fastai(make, optimizer, x, y):
    "fastai's four suggestions"
    from fastai.callback.schedule import minimum, slide, steep, valley
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import OptimWrapper
    pairs = list(zip(x, y))
    dls = DataLoaders(*(DataLoader(pairs, bs=32, shuffle=True, drop_last=True, num_workers=0) for _ in range(2)))
    torch.manual_seed(0)
    learn = Learner(dls, make(), loss_func=CrossEntropyLossFlat(), opt_func=partial(OptimWrapper, opt=optimizer))
    with learn.no_bar(), learn.no_logging(): s = learn.lr_find(suggest_funcs=(minimum, steep, valley, slide), show_plot=False)
    return dict(s._asdict())


def setting(name, how, batch):
    "All ways on one setting"
    make, (optimizer, momentum) = nets[name], optimizers[how]
    x, y = data()
    later, early = [list(zip(a.split(batch), b.split(batch))) for a, b in ((x[:900], y[:900]), (x[900:], y[900:]))]
    torch.manual_seed(0)
    model = make()
    truth = rehearse(model, later, F.cross_entropy, optimizer, steps=60, halvings=5).edge
    r = rehearse(model, early, F.cross_entropy, optimizer, steps=20, halvings=4)
    line = dict(net=name, optimizer=how, batch=batch, edge=truth, rehearsed=r.edge, rehearsed_rate=r.rate, rehearsal_seconds=round(r.seconds, 2), plateau=r.plateau)
    if momentum is not None: line['curvature'] = (1 + momentum)*hessian_edge(model.train(), *early[0], iterations=12)
    start = time.perf_counter()
    try: suggested = found_by_fastai(make, optimizer, x[900:], y[900:])
    except Exception as e: suggested, line['lr_find_failed'] = {}, f'{type(e).__name__}: {e}'
    line |= suggested | dict(lr_find_seconds=round(time.perf_counter() - start, 2))
    rates = dict(suggested, rehearsed=r.rate) | ({'curvature': line['curvature']/2} if 'curvature' in line else {})
    line['scores'] = {way: round(train(make, optimizer, lr, later), 4) for way, lr in rates.items()}
    return line


def table(lines):
    "How often each way is near the edge, above it, and among the best scores of the settings in which it has one"
    for way in ('rehearsed', 'curvature', 'minimum', 'steep', 'valley', 'slide'):
        known = [l for l in lines if l.get(way) and l['edge']]
        near = sum(.5 <= l[way]/l['edge'] <= 2 for l in known)
        wild = sum(l[way] > l['edge'] for l in known)
        scored = [l['scores'] for l in lines if way in l['scores']]
        best = sum(s[way] <= 1.1*min(s.values()) + .01 for s in scored)
        print(f'{way:10} within a factor of two of the edge in {near} of {len(known)}, above it in {wild}; among the best scores in {best} of {len(scored)}')


def main(record=None, most=44):
    lines = [json.loads(l) for l in open(record)] if record and os.path.exists(record) else []
    settings, done = list(product(nets, optimizers)), {(l['net'], l['optimizer']) for l in lines}
    for k in range(int(most)):
        name, how = settings[k*len(settings)//int(most)]
        if (name, how) in done: continue
        lines.append(setting(name, how, 32))
        print(json.dumps(lines[-1]), flush=True)
        if record:
            with open(record, 'a') as f: f.write(json.dumps(lines[-1]) + '\n')
    table(lines)


if __name__ == '__main__': main(*sys.argv[1:])
