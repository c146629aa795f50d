"A training step that computes activations again beside one that keeps them: most bytes held, and time"
import torch

from resnotes import networks
from resnotes.memory import peak_bytes
from timing import Pair, Value, row


def in_segments(name, x, segments, smoke):
    "Bytes and time of a step in segments over those of the plain step"
    model = networks.build(name)
    for p in model.parameters():   # a gradient goes when it is there
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, 'grad', None))
    def step(segments):
        def run():
            model.segments = segments
            model(x).square().mean().backward()
        return run
    again, kept = (peak_bytes(step(s)) for s in (segments, 0))
    yield Value('a step that keeps all', [again/kept], 'bytes', 'most bytes held', .25, again, kept)
    yield Pair('a step that keeps all', step(segments), step(0), ours_is='time', reach=1.25)


@row('step of strict_unet428 in segments, 2 images of 101 x 101')
def memory_unet428(smoke):
    name, side = ('strict_unet48', 24) if smoke else ('strict_unet428', 101)
    yield from in_segments(name, torch.randn(2, networks.config(name).in_channels, side, side),
                           2 if smoke else 14, smoke)


@row('step of preact1001 in segments, 8 images of 32 x 32')
def memory_preact1001(smoke):
    name = 'preact110' if smoke else 'preact1001'
    yield from in_segments(name, torch.randn(8, 3, 16 if smoke else 32, 16 if smoke else 32),
                           (4, 2, 0), smoke)
