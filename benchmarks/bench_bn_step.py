"How much longer a training step takes with batch norm: python benchmarks/bench_bn_step.py [kernel ...]"
import sys

import torch
from resnotes.train import ResidualTower, init_tower, step_ratio

device = 'cuda' if torch.cuda.is_available() else 'cpu'
x, y = torch.randn(32, 3, 32, 32, device=device), torch.randint(0, 10, (32,), device=device)
print(f'{device}, {torch.get_num_threads()} threads, torch {torch.__version__}: time of a step with batch norm over one without')
for kernel in map(int, sys.argv[1:] or (1, 3, 8)):
    plain, normed = (init_tower(ResidualTower(100, kernel=kernel, in_channels=3, stride=4, batch_norm=bn), 'he').to(device) for bn in (False, True))
    print(f'100 blocks, {kernel}x{kernel}, 16 channels on 8x8: {step_ratio(normed, plain, x, y):.2f}')
