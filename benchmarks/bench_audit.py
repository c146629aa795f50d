"""What an audit costs beside one forward and backward pass of the same model: python benchmarks/bench_audit.py [PAIRS]

Every check of the one pass is on; what takes passes of its own is named in the last column: `noise` (two more forward passes, where norms stand
between deep additions and the gradient grows a hundredfold, or where it is asked for)."""
import sys
import torch
from timing import ratio
from torch import nn

from resnotes.report import audit
from resnotes.networks import build

torch.set_num_threads(1)


class Encoder(nn.Module):
    "Twelve pre-norm layers of torch"
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0., batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 12, nn.LayerNorm(256), enable_nested_tensor=False)
    def forward(self, x): return self.encoder(x)


models = {
    'resnet50, batch 4 of 224x224': (lambda: build('resnet50'), (4, 3, 224, 224)),
    'transformer, 12 layers of width 256, batch 8 of 128 tokens': (Encoder, (8, 128, 256)),
    'strict_unet48, batch 8 of 101x101': (lambda: build('strict_unet48'), (8, 1, 101, 101)),
    'resnet56, batch 32 of 32x32': (lambda: build('resnet56'), (32, 3, 32, 32))}


def step(model, x):
    "One forward and backward pass"
    model(x).square().mean().backward()
    model.zero_grad()


def main(pairs=9):
    print(f'{torch.get_num_threads()} thread, torch {torch.__version__}: processor time of an audit over that of a forward and '
          f'backward pass, median and range of {pairs} pairs')
    for name, (make, shape) in models.items():
        torch.manual_seed(0)
        model, x = make(), torch.randn(shape)
        for what, noise in (('as it is called', None), ('with the noise', True)):
            seen = audit(model, x, noise=noise)
            median, low, high = ratio(lambda: audit(model, x, noise=noise), lambda: step(model, x), int(pairs))
            passes = 'noise' if seen.noise == seen.noise else '-'
            print(f'{name:60} {what:16} x{median:.2f}  ({low:.2f}-{high:.2f})  {passes}', flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
