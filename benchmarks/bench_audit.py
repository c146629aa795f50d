"What an audit costs beside one forward and backward pass of the same model: python benchmarks/bench_audit.py"
import torch
from timing import report
from torch import nn

from resnotes.report import audit
from resnotes.networks import build

layer = nn.TransformerEncoderLayer(128, 4, 512, 0., batch_first=True)
models = {
    'resnet56, batch 32 of 32x32': (build('resnet56'), torch.randn(32, 3, 32, 32)),
    'resnet50, batch 4 of 128x128': (build('resnet50'), torch.randn(4, 3, 128, 128)),
    'strict_unet48, batch 8 of 101x101': (build('strict_unet48'), torch.randn(8, 1, 101, 101)),
    'transformer, 12 layers, batch 8 of 64 tokens': (nn.TransformerEncoder(layer, 12), torch.randn(8, 64, 128))}


def step(model, x):
    "One forward and backward pass"
    model(x).square().mean().backward()
    model.zero_grad()


print(f'{torch.get_num_threads()} threads, torch {torch.__version__}: '
      'time of an audit over a forward and backward pass, median and range of nine pairs')
for name, (model, x) in models.items(): report(name, lambda: audit(model, x), lambda: step(model, x))
