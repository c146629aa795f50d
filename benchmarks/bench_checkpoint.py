"A training step that computes activations again beside one that keeps them: peak memory and processor time. python benchmarks/bench_checkpoint.py"
import torch
from resnotes import networks
from resnotes.memory import peak_bytes
from timing import ratio

LESS_MEMORY, MORE_TIME = 4, 1.5   # what must be reached, and what it may cost


def compare(name, model, x, segments, runs=3):
    "Print both ratios; refuse what misses the bounds"
    for p in model.parameters(): p.register_post_accumulate_grad_hook(lambda p: setattr(p, 'grad', None))

    def step(segments):
        model.segments = segments
        model(x).square().mean().backward()

    kept, again = (peak_bytes(lambda: step(s)) for s in (0, segments))
    median, low, high = ratio(lambda: step(segments), lambda: step(0), runs)
    print(f'{f"{name}, {len(x)} images, segments per stage {segments}":72} x{median:.2f}  ({low:.2f}-{high:.2f})  '
          f'memory {kept/2**20:.0f} / {again/2**20:.0f} MiB = x{kept/again:.1f} less', flush=True)
    assert kept >= LESS_MEMORY*again, f'{name} saves only {kept/again:.1f} times the memory'
    assert median <= MORE_TIME, f'{name} takes {median:.2f} times as long'


torch.set_num_threads(1)
torch.manual_seed(0)
compare('preact1001', networks.build('preact1001'), torch.randn(8, 3, 32, 32), segments=(4, 2, 0))
compare('strict_unet428', networks.build('strict_unet428'), torch.randn(2, 3, 101, 101), segments=14, runs=7)
