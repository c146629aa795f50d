"Small networks that several tests start, audit and compare, and what must be left as it was found"
import torch
from torch import nn

from resnotes.blocks import BasicBlock, StrictBlock
from resnotes.networks import build
from resnotes.resnet import ResNetConfig


def pooled(*layers, channels=8): return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
def strict(n=4, norm_layer=None): return pooled(*[StrictBlock(8, norm_layer=norm_layer) for _ in range(n)])
def normed(n=4): return pooled(*[m for _ in range(n) for m in (StrictBlock(8), nn.BatchNorm2d(8))])
def original(n=3): return pooled(*[BasicBlock(8, 8) for _ in range(n)])                                   # ends on a norm, ReLU after the addition
def small_resnet(): return build(ResNetConfig((2, 2), 8, batch_norm=False, in_channels=1, stem_width=8))
def transformer(n=2, dropout=0.): return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True), n)
def images(n=6, size=8): return torch.randn(n, 1, size, size)

class Tiny(nn.Module):
    "x + W2 relu(W1 x), twice, then a head; written out so that it can be followed by hand"
    def __init__(self, inplace=False):
        super().__init__()
        self.layers, self.head, self.inplace = nn.ModuleList(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3), inplace
    def forward(self, x):
        self.sums, self.branches = [], []
        for a, b in (self.layers[:2], self.layers[2:]):
            f = b(a(x).relu())
            self.branches.append(f)
            if self.inplace:
                x = x.clone()
                x += f
                self.sums.append(x.clone())
            else: self.sums.append(x := x + f)
        return self.head(x)

def snapshot(model):
    return ({k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state(), [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()])

def same(a, b): return all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]
