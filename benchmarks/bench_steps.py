"""A training step with what makes it faster, beside the plain step in float32; and the same net beside other libraries' """
import copy, os, tempfile, time
from functools import partial

compiled = tempfile.TemporaryDirectory()
os.environ['TORCHINDUCTOR_CACHE_DIR'] = compiled.name   # nothing that another run left is met

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper, SGD
from torch import nn
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F

from resnotes import networks
from resnotes.blocks import Identity, Residual
from resnotes.init import depth_scaled_normal, init_layers
from resnotes.losses import BCEMaskLoss
from resnotes.speed import (Bf16, ChannelsLast, Compiled, StageCheckpoint, count_operators, fold_norms,
                            residual_stages)
from resnotes.unet import StrictUNet
from timing import Left, Pair, Value, last_line, row, seconds

foreach = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, foreach=True))


def build(name, smoke):
    "A net of this name; a small one of its kind for a smoke test"
    if not smoke: return networks.build(name)
    if 'unet' in name: return networks.build('strict_unet48', blocks=(1,)*5)
    return networks.build('wrn_16_4' if 'wrn' in name else 'resnet20')


def batch(model, smoke, n=None, side=None, device='cpu'):
    "Images for a net, and what it shall say of them"
    mask = isinstance(model, StrictUNet)
    n, side = n or (8 if mask else 32), side or (101 if mask else 32)
    if smoke: n, side = 2, 32
    x = torch.randn(n, model.config.in_channels, side, side)
    y = (torch.rand(n, 1, side, side) < .3).float() if mask else torch.randint(0, 10, (n,))
    return x.to(device), y.to(device)


def in_a_fit(learn):
    "A Learner in the middle of a fit"
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('Recorder', 'ProgressCallback')])
    learn.create_opt()
    learn.opt.set_hypers(lr=1e-3)
    learn.n_epoch, learn.n_iter, learn.dl, learn.epoch = 1, 1, learn.dls.train, 0
    for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)
    return learn


def stepper(model, x, y, cbs=(), opt=foreach):
    "A function that takes one training step"
    loss = BCEMaskLoss() if y.is_floating_point() else CrossEntropyLossFlat()
    dls = DataLoaders.from_dsets([0]*2, [0]*2, bs=1, device=x.device)
    learn = in_a_fit(Learner(dls, model, loss, opt_func=opt, cbs=cbs))
    return lambda: learn.one_batch(0, (x, y))


fast = {'bfloat16, channels last': lambda: [Bf16(), ChannelsLast()]}


def pair_of(beside, ours, theirs, **how):
    "Two steps, each of a net, its batch and its callbacks; what cannot be made here is left out"
    def made(model, data, cbs): return stepper(copy.deepcopy(model), *data, cbs())
    try: return Pair(beside, made(*ours), made(*theirs), **how)
    except RuntimeError as e: return Left(f"{beside} ({how['ours_is']})", last_line(e))   # no compiler


def steps(name, smoke, made=fast, data=None, plain=('float32', tuple), **how):
    "Remedies, each beside the plain step from the same weights"
    model = build(name, smoke)
    data = data or batch(model, smoke)
    kind, cbs = plain
    for remedy, remedies in made.items():
        yield pair_of(f'plain step of {name} in {kind}', (model, data, remedies),
                      (model, data, cbs), ours_is=remedy, **how)


@row('step of strict_unet272, 8 images of 101 x 101', reach=.4)
def step_unet272(smoke): yield from steps('strict_unet272', smoke)


@row('step of strict_unet272, two threads', reach=.4, threads=2)
def step_unet272_two_threads(smoke):
    yield from steps('strict_unet272', smoke, clock=time.perf_counter)


@row('step of resnet110, 32 images of 32 x 32', reach=.6)
def step_resnet110(smoke): yield from steps('resnet110', smoke)


@row('step of preact1001, 32 images of 32 x 32', reach=.6)
def step_preact1001(smoke): yield from steps('preact1001', smoke)


@row('loss of strict_unet272 in bfloat16, channels last, over 12 steps', reach=1)
def curve_unet272(smoke):
    "Largest distance from the plain curve of the same seed, over the spread of three plain seeds"
    def curve(seed, cbs=()):
        torch.manual_seed(seed)
        model, n = build('strict_unet272', smoke), 12
        init_layers(model, depth_scaled_normal, depth=272)
        x, _ = batch(model, smoke, 4, 32)
        y = (F.avg_pool2d(x[:,:1], 3, 1, 1) > .2).float()   # something to be learnt
        dls = DataLoaders.from_dsets([0]*2, [0]*2, bs=1, device='cpu')
        learn, losses = in_a_fit(Learner(dls, model, BCEMaskLoss(), opt_func=foreach, cbs=cbs)), []
        learn.opt.set_hypers(lr=.05)
        for _ in range(2 if smoke else n):
            learn.one_batch(0, (x, y))
            losses.append(learn.loss.item())
        return np.array(losses)
    plain = np.stack([curve(seed) for seed in range(3)])
    away = np.abs(curve(0, fast['bfloat16, channels last']()) - plain[0])
    spread = np.ptp(plain, axis=0)
    yield Value('the spread of three seeds', [float(away.max()/spread.max())], 'loss',
                ours=float(away.max()), theirs=float(spread.max()))


@row('step of resnet50, 4 images of 224 x 224', reach=1)
def resnet50(smoke):
    n, side = (2, 64) if smoke else (4, 224)
    x, y = torch.randn(n, 3, side, side), torch.randint(0, 1000, (n,))
    def step(model): return lambda: F.cross_entropy(model.train()(x), y).backward()
    ours = step(networks.build('resnet50'))
    def timm(package): return step(package.create_model('resnet50'))
    def torchvision(package): return step(package.models.resnet50())
    yield Pair('timm', ours, timm, 'timm')
    yield Pair('torchvision', ours, torchvision, 'torchvision')


@row('step of preact1001, 8 images of 32 x 32')
def thin_beside_wide(smoke):
    "How many times as long as a step of a wide net"
    model = build('preact1001', smoke)
    x, y = batch(model, smoke, 8)
    thin = stepper(model, x, y)
    for name in ('wrn_16_4',) if smoke else ('wrn_16_8', 'wrn_40_4', 'wrn_28_10'):
        yield Pair(name, thin, stepper(networks.build(name), x, y), runs=3)


@row('a remedy alone, 32 images of 32 x 32')
def remedies(smoke):
    "On a wide net of 16 layers and on a thin one of 56"
    made = {'channels last': lambda: [ChannelsLast()], 'bfloat16': lambda: [Bf16()],
            'bfloat16, float32 stream': lambda: [Bf16(True)],
            'checkpoints, 4 per stage': lambda: [StageCheckpoint(4)]}
    for name in ('wrn_16_4', 'resnet56'):
        yield from steps(name, smoke, made=made, runs=3)
        model = build(name, smoke)
        data = batch(model, smoke)
        ours = stepper(copy.deepcopy(model), *data)
        theirs = stepper(model, *data, opt=partial(SGD, mom=.9))
        counts = [count_operators(o) for o in (ours, theirs)]
        beside = f"step of {name} with fastai's SGD"
        yield Pair(beside, ours, theirs, ours_is='SGD in foreach form', runs=3)
        yield Value(beside, [counts[0]/counts[1]], 'operators', ours=counts[0], theirs=counts[1],
                    ours_is='SGD in foreach form, operators')
    if not smoke:   # compiling takes a minute
        compiled = {'compiled by unit': lambda: [Compiled(True)]}
        yield from steps('resnet56', smoke, made=compiled, runs=3)


class NormReLU(torch.autograd.Function):
    "Batch norm and ReLU as one function of the graph: the ReLU overwrites on both ways, kept are input and output"
    @staticmethod
    def forward(ctx, x, weight, bias, norm):
        y, mean, invstd = torch.native_batch_norm(x, weight, bias, norm.running_mean, norm.running_var,
                                                  True, norm.momentum, norm.eps)
        norm.num_batches_tracked += 1
        ctx.eps = norm.eps
        ctx.save_for_backward(x, y.relu_(), weight, mean, invstd)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y, weight, mean, invstd = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=g)
        return *torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, invstd, True,
                                                          ctx.eps, [True]*3), None


def units_of(model, order):
    "A copy of a net, and its units of this order whose shortcut is the identity"
    model = copy.deepcopy(model)
    return model, [m for m in model.modules() if isinstance(m, Residual) and m.order == order
                   and type(m.shortcut) is Identity]


def fused(model):
    "Pre-activation units in training: norm and ReLU one function, the sum in the buffer of the branch"
    def forward(unit, x):
        f, layers = x, [m for m in unit.branch if not isinstance(m, nn.ReLU)]
        for norm, conv in zip(layers[::2], layers[1::2]): f = conv(NormReLU.apply(f, norm.weight, norm.bias, norm))
        return f.add_(x)
    model, units = units_of(model, 'preact')
    for unit in units: unit.forward = partial(forward, unit)
    return model


class InPlace(Identity):
    def forward(self, x, f): return f.add_(x)


def in_place(model, order='preact'):
    "ReLUs and additions overwrite what they read, as in other libraries"
    model, units = units_of(model, order)
    for unit in units:
        unit.shortcut = InPlace()
        for m in unit.modules():
            if isinstance(m, nn.ReLU): m.inplace = True
    return model


def gradients(model, x, y):
    "All that a step makes: prediction, gradients, statistics"
    model.train()
    pred = model(x)
    loss = BCEMaskLoss() if y.is_floating_point() else F.cross_entropy
    return [pred, *torch.autograd.grad(loss(pred, y), list(model.parameters())), *model.buffers()]


@row('a further remedy of the step in bfloat16, channels last')
def fewer_passes(smoke):
    "Fewer passes over memory, the same bits"
    cbs = fast['bfloat16, channels last']
    ways = {'norm and ReLU as one function, addition in place': fused, 'ReLU and addition in place': in_place}
    for name in ('strict_unet272', 'preact1001'):
        model = networks.build('preact110') if smoke and 'preact' in name else build(name, smoke)
        data = batch(model, smoke)
        few = [t[:2] for t in data]
        for way, change in ways.items():
            both = (gradients(m, *few) for m in (change(model), copy.deepcopy(model)))
            assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
            yield pair_of(f'step of {name} without', (change(model), data, cbs), (model, data, cbs),
                          ours_is=way, runs=5)


def by_stage(model): return [nn.Sequential(*residual_stages(model))]


@row('a compiled step in bfloat16, channels last')
def compiled_ways(smoke):
    "Each way beside the step that is not compiled: the first step, which waits for the compiler, then the others"
    how = dict(backend='eager') if smoke else {}
    ways = {'by unit': dict(units=True), 'by stage': dict(units=True, stages=by_stage), 'whole': {}}
    for name, which in (('resnet20', ways), ('resnet56', ['by unit']), ('strict_unet272', ['by unit'])):
        model, cbs = build(name, smoke), fast['bfloat16, channels last']
        data = batch(model, smoke)
        plain = stepper(copy.deepcopy(model), *data, cbs())
        plain()
        for way in which:
            torch._dynamo.reset()
            made = lambda: [*cbs(), Compiled(**ways[way], **how)]
            try: ours = stepper(copy.deepcopy(model), *data, made())
            except RuntimeError as e: yield Left(f'{name} not compiled ({way})', last_line(e))
            else:
                with fresh_cache(): first = seconds(ours, time.perf_counter)   # nothing of an earlier way is met
                others = seconds(plain, time.perf_counter)
                yield Value(f'step of {name}', [first/others], 'seconds', f'{way}, first step',
                            ours=first, theirs=others)
                yield Pair(f'step of {name}', ours, plain, ours_is=way, runs=5)


@row('a part compiled, 32 images, 16 channels on 32 x 32, bfloat16, channels last')
def compiled_parts(smoke):
    "What the compiler makes of the parts between convolutions, forward and backward"
    n, norm = 2 if smoke else 32, nn.BatchNorm2d(16)
    def images(): return torch.randn(n, 16, 32, 32).bfloat16().contiguous(memory_format=torch.channels_last)
    x, f, g = images().requires_grad_(), images().requires_grad_(), images()
    parts = {'addition': lambda x, f: x + f, 'batch norm': lambda x, f: norm(f), 'ReLU': lambda x, f: F.relu(f),
             'batch norm and ReLU': lambda x, f: F.relu(norm(f)),
             'batch norm, addition and ReLU': lambda x, f: F.relu(x + norm(f))}
    for name, part in parts.items():
        torch._dynamo.reset()
        ways = torch.compile(part, backend='eager' if smoke else 'inductor'), part
        ours, theirs = (lambda way=way: way(x, f).backward(g) for way in ways)
        yield Pair('not compiled', ours, theirs, ours_is=name, runs=15)


@row('a prediction in float32, channels last, with norms folded')
def folding(smoke):
    "Norms behind a convolution: every norm of a unit of the original order, all but the first of a pre-activated one"
    for name in ('resnet110', 'strict_unet272'):
        model = build(name, smoke).eval().to(memory_format=torch.channels_last)
        x = batch(model, smoke)[0].contiguous(memory_format=torch.channels_last)
        ways = ours, theirs = [torch.no_grad()(partial(m, x)) for m in (fold_norms(model), model)]
        torch.testing.assert_close(*(way() for way in ways), rtol=1e-3, atol=1e-4)
        yield Pair('not folded', ours, theirs, ours_is=name, runs=7)


@row('step of 100 blocks with batch norm, 32 images, 16 channels on 8 x 8')
def batch_norm(smoke):
    "For three sizes of kernels"
    x, y = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    def make(kernel, batch_norm):
        depth = 4 if smoke else 100
        model = networks.build('taki_tower', depth=depth, kernel_size=kernel, in_channels=3,
                               stride=4, batch_norm=batch_norm)
        init_layers(model, depth_scaled_normal, depth=depth)
        def step():
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
        return step
    for kernel in (1, 3, 8):
        yield Pair('without batch norm', make(kernel, True), make(kernel, False), runs=5,
                   ours_is=f'kernels of {kernel} x {kernel}')
