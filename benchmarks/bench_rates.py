"""Four ways to find a learning rate, beside the largest at which sixty real steps stay tame, on digits, CIFAR-10 and nuclei made small.

    RESNOTES_DATA=folder python benchmarks/bench_rates.py [RECORD.jsonl [SETTINGS]]

Asked are the rehearsal, 2(1+m)/lambda of the Hessian at the start, and fastai's lr_find with its four suggestions. Tame is a rate at which the loss
of no step exceeds 1.25 times the largest that the batches have at the start; the batches are others than those asked. After each, the network is
trained for 120 steps at the rate that it suggests (half of an edge); the score is the mean loss of the last twenty. One line per setting, appended
to the record, whose settings are not run again."""
import json, math, os, platform, random, sys, time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from resnotes import __version__
from resnotes.init import he_normal, init_layers
from resnotes.rate import rehearse
from resnotes.sensitivity import hessian_edge

torch.set_num_threads(1)


def mlp(depth, norm=False, curve=nn.ReLU, channels=1):
    layers, inputs = [nn.Flatten()], 64*channels
    for _ in range(depth):
        layers += [nn.Linear(inputs, 64), *([nn.BatchNorm1d(64)] if norm else []), curve()]
        inputs = 64
    return nn.Sequential(*layers, nn.Linear(64, 10))


def convs(norm, depth=2, channels=1, head=True):
    "Convolutions on 8x8 or 16x16, with a head for ten classes or one logit per pixel"
    layers, inputs = [], channels
    for _ in range(depth):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
        inputs = 8
    end = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)] if head else [nn.Conv2d(8, 1, 1)]
    return nn.Sequential(*layers, *end)


def he(model):
    init_layers(model, he_normal)
    return model


class Residual(nn.Module):
    "Blocks x + f(x), with norms or scaled down by depth"
    def __init__(self, norm, depth=3):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(128, 10)
        def block(): return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.blocks = nn.ModuleList(block() for _ in range(depth))
    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks: x = x + b(x)
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


digit_nets = {'mlp 1': lambda: mlp(1), 'mlp 3': lambda: mlp(3), 'mlp 3 he': lambda: he(mlp(3)), 'mlp 3 norms': lambda: mlp(3, True), 'mlp 3 tanh': lambda: mlp(3, curve=nn.Tanh),
              'convs': lambda: convs(False), 'convs norms': lambda: convs(True), 'convs 4 he': lambda: he(convs(False, 4)), 'residual': lambda: Residual(False), 'residual norms': lambda: Residual(True)}
colour_nets = {'mlp 2': lambda: mlp(2, channels=3), 'mlp 3 norms': lambda: mlp(3, True, channels=3), 'convs': lambda: convs(False, channels=3), 'convs norms': lambda: convs(True, channels=3)}
mask_nets = {'convs': lambda: convs(False, 3, head=False), 'convs norms': lambda: convs(True, 3, head=False)}
nets = dict(digits=digit_nets, cifar=colour_nets, nuclei=mask_nets)
optimizers = {'sgd': (torch.optim.SGD, 0.), 'sgd .9': (partial(torch.optim.SGD, momentum=.9), .9), 'adam': (torch.optim.Adam, None)}
settings = [(data, name, how) for how in optimizers for data in nets for name in nets[data]]


def picture(file, mode):
    import numpy as np
    from PIL import Image
    return torch.from_numpy(np.array(Image.open(file).convert(mode), dtype='float32')/255)


def data(which):
    "1792 inputs around unit scale with targets, and the loss"
    draw = torch.Generator().manual_seed(1)
    if which == 'digits':
        from sklearn.datasets import load_digits
        d = load_digits()
        x, y = torch.tensor(d.images[:, None]/16, dtype=torch.float32), torch.tensor(d.target)
    folder = Path(os.environ.get('RESNOTES_DATA', 'data'))
    if which == 'cifar':
        classes = sorted(p for p in (folder/'cifar10_small/train').iterdir() if p.is_dir())
        files = [(f, k) for k, c in enumerate(classes) for f in sorted(c.iterdir())[:180]]
        x = torch.stack([F.avg_pool2d(picture(f, 'RGB').permute(2, 0, 1), 4) for f, _ in files])
        y = torch.tensor([k for _, k in files])
    if which == 'nuclei':
        images = sorted((folder/'nuclei/train/images').iterdir())
        whole = [(picture(f, 'L'), picture(folder/'nuclei/train/masks'/f.name, 'L')) for f in images]
        def tiles(t): return F.avg_pool2d(t[None], 4).unfold(1, 16, 16).unfold(2, 16, 16).reshape(-1, 1, 16, 16)
        x, y = (torch.cat([tiles(p[k]) for p in whole]) for k in (0, 1))
        y = (y > .5).float()
    order = torch.randperm(len(x), generator=draw)[:1792]
    x, y = x[order], y[order]
    return (x - x.mean())/x.std(), y, F.cross_entropy if y.ndim == 1 else F.binary_cross_entropy_with_logits


def train(model, optimizer, lr, batches, loss, steps=120, top=math.inf):
    "Losses, up to the first that is above the limit or not finite"
    losses, opt = [], optimizer(model.parameters(), lr=lr)
    for k in range(steps):
        x, y = batches[k%len(batches)]
        value = loss(model(x), y)
        losses.append(value.item())
        if not losses[-1] <= top or not math.isfinite(losses[-1]): break
        opt.zero_grad()
        value.backward()
        opt.step()
    return losses


def measured_edge(make, optimizer, batches, loss, steps=60, halvings=5):
    "The largest rate at which real steps stay tame, by tens and then by halves"
    with torch.no_grad(): top = 1.25*max(loss(make()(x), y).item() for x, y in batches)
    def tame(lr):
        losses = train(make(), optimizer, lr, batches, loss, steps, top)
        return len(losses) == steps and losses[-1] <= top
    low = .01
    while low > 1e-7 and not tame(low): low /= 10
    while low < 1e4 and tame(10*low): low *= 10
    for k in range(1, halvings + 1):
        if tame(low*10**(.5**k)): low *= 10**(.5**k)
    return low


def found_by_fastai(make, optimizer, x, y, loss):
    "fastai's four suggestions"
    from fastai.callback.schedule import minimum, slide, steep, valley
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper
    pairs = list(zip(x, y))
    random.seed(0)   # fastai's loaders shuffle by it
    dls = DataLoaders(*(DataLoader(pairs, bs=32, shuffle=True, drop_last=True, num_workers=0) for _ in range(2)))
    torch.manual_seed(0)
    learn = Learner(dls, make(), loss_func=loss, opt_func=partial(OptimWrapper, opt=optimizer))
    with learn.no_bar(), learn.no_logging(): s = learn.lr_find(suggest_funcs=(minimum, steep, valley, slide), show_plot=False)
    return dict(s._asdict())


def setting(which, name, how, batch=32):
    "All ways on one setting"
    (optimizer, momentum), (x, y, loss) = optimizers[how], data(which)
    def make():
        torch.manual_seed(0)
        return nets[which][name]().train()
    half = len(x)//2
    later, early = [list(zip(a.split(batch), b.split(batch))) for a, b in ((x[:half], y[:half]), (x[half:], y[half:]))]
    r = rehearse(make(), early, loss, optimizer, steps=20, halvings=4)
    line = dict(data=which, net=name, optimizer=how, batch=batch, edge=measured_edge(make, optimizer, later, loss), rehearsed=r.edge,
                rehearsed_rate=r.rate, rehearsed_steps=max(len(run.losses) for run in r.runs), rehearsal_seconds=round(r.seconds, 2), plateau=r.plateau)
    if momentum is not None: line['curvature'] = (1 + momentum)*hessian_edge(make(), *early[0], loss, iterations=12)
    start = time.perf_counter()
    try: suggested = found_by_fastai(make, optimizer, x[half:], y[half:], loss)
    except Exception as e: suggested, line['lr_find_failed'] = {}, f'{type(e).__name__}: {e}'
    line |= suggested | dict(lr_find_seconds=round(time.perf_counter() - start, 2))
    rates = dict(suggested, rehearsed=r.rate) | ({'curvature': line['curvature']/2} if 'curvature' in line else {})
    line['scores'] = {}
    for way, lr in rates.items():
        losses = train(make(), optimizer, lr, later, loss)
        line['scores'][way] = round(sum(losses[-20:])/20, 4) if len(losses) == 120 and math.isfinite(losses[-1]) else None
    return line | dict(preset='small nets, one thread', device='cpu', python=platform.python_version(), torch=torch.__version__, resnotes=__version__)


def near(line, way): return line.get(way) is not None and .5 <= line[way]/line['edge'] <= 2


def main(record=None, most=len(settings)):
    lines = [json.loads(l) for l in open(record)] if record and os.path.exists(record) else []
    done = {(l['data'], l['net'], l['optimizer']) for l in lines}
    for which, name, how in settings[:int(most)]:
        if (which, name, how) in done: continue
        lines.append(setting(which, name, how))
        print(json.dumps(lines[-1]), flush=True)
        if record:
            with open(record, 'a') as f: f.write(json.dumps(lines[-1]) + '\n')
    for way in ('rehearsed', 'curvature', 'minimum', 'steep', 'valley', 'slide'):
        known = [l for l in lines if l.get(way) and l['edge']]
        print(f'{way:10} within a factor of two of the edge in {sum(near(l, way) for l in known)} of {len(known)}, above it in {sum(l[way] > l["edge"] for l in known)}')


if __name__ == '__main__': main(*sys.argv[1:])
