"How much longer a training step takes with batch norm: python benchmarks/bench_bn_step.py [kernel ...]"
import sys, time

import torch
from torch import nn
from resnotes import networks
from resnotes.init import depth_scaled_normal, init_layers
from timing import report

device = 'cuda' if torch.cuda.is_available() else 'cpu'
clock = time.perf_counter if device == 'cuda' else time.process_time   # a processor that waits for the GPU does not work
x, y = torch.randn(32, 3, 32, 32, device=device), torch.randint(0, 10, (32,), device=device)


def stepper(kernel, batch_norm):
    "A function that runs forward and backward pass of 100 blocks once"
    model = networks.build('taki_tower', depth=100, kernel_size=kernel, in_channels=3, stride=4, batch_norm=batch_norm)
    init_layers(model, depth_scaled_normal, depth=100)
    model.to(device)
    def step():
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if device == 'cuda': torch.cuda.synchronize()
    return step


print(f'{device}, {torch.get_num_threads()} threads, torch {torch.__version__}: time of a step with batch norm over one without')
for kernel in map(int, sys.argv[1:] or (1, 3, 8)):
    report(f'100 blocks, {kernel}x{kernel}, 16 channels on 8x8', stepper(kernel, True), stepper(kernel, False), clock=clock)
