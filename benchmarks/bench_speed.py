"A training step with each remedy beside the plain step: ratios of times, below 1 where it helps. python benchmarks/bench_speed.py [fast]"
import os, sys, tempfile, time
from functools import partial

compiled = tempfile.TemporaryDirectory()
os.environ['TORCHINDUCTOR_CACHE_DIR'] = compiled.name   # what an interrupted compilation left elsewhere is not met again

import torch
from fastai.optimizer import OptimWrapper, SGD
from torch import nn
from resnotes import networks
from resnotes.memory import peak_bytes
from resnotes.speed import Bf16, ChannelsLast, Compiled, CudaGraphs, StageCheckpoint, count_operators
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from timing import report

device = 'cuda' if torch.cuda.is_available() else 'cpu'
clock = time.perf_counter if device == 'cuda' else time.process_time   # a processor that waits for the GPU does not work
fast = 'fast' in sys.argv[1:]   # small sizes, and no compilation
foreach = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, foreach=True))


def stepper(name, x, y, cbs=(), opt=foreach):
    "A function that takes one training step of a Learner in the middle of a fit"
    torch.manual_seed(0)
    learn = Learner(DataLoaders.from_dsets([0]*2, [0]*2, bs=1, device=device), networks.build(name).to(device), CrossEntropyLossFlat(), opt_func=opt, cbs=cbs)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('Recorder', 'ProgressCallback')])
    learn.create_opt()
    learn.opt.set_hypers(lr=1e-3)
    learn.n_epoch, learn.n_iter, learn.dl, learn.epoch = 1, 1, learn.dls.train, 0
    for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)
    def step():
        learn.one_batch(0, (x, y))
        if device == 'cuda': torch.cuda.synchronize()
    return step


torch.set_num_threads(1)
torch.manual_seed(0)
n, runs = 2 if fast else 8 if device == 'cpu' else 128, 3 if fast else 5
nets = {'wide: 16 layers, 4 times as wide': 'wrn_16_4', 'thin: 56 layers, 16 channels': 'resnet56'}
remedies = {'channels last': lambda: [ChannelsLast()], 'bfloat16': lambda: [Bf16()], 'bfloat16, float32 stream': lambda: [Bf16(True)],
            'bfloat16 and channels last': lambda: [Bf16(), ChannelsLast()], 'checkpoints, 4 per stage': lambda: [StageCheckpoint(4)]}
if not fast: remedies['compiled unit by unit'] = lambda: [Compiled(True)]
if device == 'cuda': remedies |= {'captured step': lambda: [CudaGraphs()], 'captured step, bfloat16, channels last': lambda: [CudaGraphs(), Bf16(), ChannelsLast()]}
print(f'{device}, torch {torch.__version__}, {n} images of 32 x 32: time of a step over the time of the plain step')
for net, name in nets.items():
    x, y = torch.randn(n, 3, 32, 32, device=device), torch.randint(0, 10, (n,), device=device)
    for remedy, cbs in remedies.items():
        torch._dynamo.reset()
        try: ours = stepper(name, x, y, cbs())
        except RuntimeError as e: print(f'{net}: {remedy} left out: {e}')   # no compiler, no bfloat16 units
        else: report(f'{net}: {remedy}', ours, stepper(name, x, y), runs, clock)
    ours, theirs = stepper(name, x, y), stepper(name, x, y, opt=partial(SGD, mom=.9))
    report(f'{net}: SGD in foreach form over fastai\'s', ours, theirs, runs, clock)
    print(f'    operators of a step: {count_operators(ours)} in foreach form, {count_operators(theirs)} with fastai\'s SGD')

model, x = networks.build('strict_unet48', blocks=(2 if fast else 8,)*7), torch.randn(1, 1, 48, 48)
def step(): model(x).square().mean().backward()
whole = peak_bytes(step)
cut = StageCheckpoint(3)
for p in model.parameters(): p.grad = None
for stage in model.stages: stage.forward = cut.in_segments(stage)
print(f'strict U-Net, {len(model.stages[0])} units per stage, 3 segments: peak memory of a step x{peak_bytes(step)/whole:.2f}')
