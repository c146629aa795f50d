"Filling a weight beside torch.nn.init, and the import of resnotes.init beside that of torch."
import subprocess, sys
import torch
from torch import nn
from resnotes.init import glorot_normal, he_normal
from timing import report

torch.set_num_threads(1)
w = torch.empty(512, 512, 3, 3)
report('he_normal / kaiming_normal_, 512x512x3x3', lambda: he_normal(w), lambda: nn.init.kaiming_normal_(w))
report('glorot_normal(truncated) / trunc_normal_, 512x512x3x3', lambda: glorot_normal(w, truncated=True), lambda: nn.init.trunc_normal_(w))

code = ('import time; a = time.perf_counter(); import torch; b = time.perf_counter(); import resnotes.init; '
        'print((time.perf_counter() - b)/(b - a))')
shares = sorted(float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) for _ in range(5))
print(f"{'import resnotes.init after torch / import torch':72} x{shares[2]:.3f}  ({shares[0]:.3f}-{shares[-1]:.3f})")
