"The start of a net beside the peers, and what an import costs"
import copy, subprocess, sys, time

import torch
from torch import nn

from resnotes import networks
from resnotes.init import glorot_normal, he_normal
from resnotes.starts import initialize
from timing import Pair, Value, row


@row("initialize(rule='lsuv') of resnet110, 32 images of 32 x 32", reach=.02)
def lsuv_resnet110(smoke):
    model = networks.build('resnet20' if smoke else 'resnet110')
    x = torch.randn(32, 3, 32, 32)
    def theirs(package):
        return lambda: package.lsuv_with_singlebatch(copy.deepcopy(model), x, verbose=False)
    def ours(): initialize(copy.deepcopy(model), x, rule='lsuv')
    yield Pair('lsuv', ours, theirs, 'lsuv', runs=1, warm=False)


@row('filling a weight of 512 x 512 x 3 x 3', reach=1.1)
def fill(smoke):
    w = torch.empty(8 if smoke else 512, 512, 3, 3)
    yield Pair('kaiming_normal_', lambda: he_normal(w), lambda: nn.init.kaiming_normal_(w),
               ours_is='he_normal')
    yield Pair('trunc_normal_', lambda: glorot_normal(w, truncated=True),
               lambda: nn.init.trunc_normal_(w), ours_is='glorot_normal, truncated')


@row('import of resnotes.init after torch', reach=.1)
def import_time(smoke):
    code = ('import time; a = time.process_time(); import torch; b = time.process_time(); '
            'import resnotes.init; c = time.process_time(); print(b - a, c - b)')
    def once():
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
        return [float(o) for o in done.stdout.split()]
    times = [once() for _ in range(1 if smoke else 5)]
    yield Value('import of torch', [ours/torch for torch, ours in times], 'seconds',
                ours=min(ours for _, ours in times), theirs=min(t for t, _ in times))
