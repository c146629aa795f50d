"A training step that computes activations again beside one that keeps them: most bytes held, and time"
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from resnotes import networks
from resnotes.memory import checkpointed, peak_bytes
from resnotes.speed import residual_stages
from timing import Pair, Value, row


def gpu_bytes(run):
    "Most bytes of the GPU that a call holds beside those held before it, workspaces included"
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def in_segments(model, x, segments):
    "Bytes and time of a step in segments over those of the plain step"
    model, most = model.to(x.device), gpu_bytes if x.is_cuda else peak_bytes
    for p in model.parameters():   # a gradient goes when it is there
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, 'grad', None))
    def step(segments):
        def run():
            model.segments = segments
            model(x).square().mean().backward()
        return run
    again, kept = (most(step(s)) for s in (segments, 0))
    yield Value('a step that keeps all', [again/kept], 'bytes', 'most bytes held', .25, again, kept)
    yield Pair('a step that keeps all', step(segments), step(0), ours_is='time', reach=1.25)


@row('step of strict_unet428 in segments, 2 images of 101 x 101')
def memory_unet428(smoke):
    name, side = ('strict_unet48', 24) if smoke else ('strict_unet428', 101)
    model = networks.build(name)
    yield from in_segments(model, torch.randn(2, model.config.in_channels, side, side),
                           2 if smoke else 14)


@row('step of preact1001 in segments, 8 images of 32 x 32')
def memory_preact1001(smoke):
    model, side = networks.build('preact110' if smoke else 'preact1001'), 16 if smoke else 32
    yield from in_segments(model, torch.randn(8, 3, side, side), (4, 2, 0))


@row('step of preact1001 in 4 segments a stage, 8 images of 32 x 32')
def reentrant(smoke):
    "PyTorch's older form, which builds no graph in the first pass; statistics of norms move twice"
    model, side = networks.build('preact110' if smoke else 'preact1001'), 16 if smoke else 32
    x = torch.randn(8, 3, side, side)
    def older(blocks, x):
        n = len(blocks)
        for i in range(4): x = checkpoint(nn.Sequential(*blocks[n*i//4:n*(i+1)//4]), x, use_reentrant=True)
        return x
    def step(run):
        def go():
            for stage in residual_stages(model): stage.forward = partial(run, list(stage))
            model(x).square().mean().backward()
        return go
    yield Pair('checkpointed', step(older), step(partial(checkpointed, segments=4)), ours_is='reentrant', runs=5)
