"""A training step of the thin net of 1001 layers beside one of each wide net: ratios of times.

    python benchmarks/bench_width.py [RECORD.jsonl]

Images of 32 x 32 pixels. With a file name, one line per net is written there."""
import json, platform, sys, time
from datetime import datetime, timezone

import torch
import torch.nn.functional as F
from resnotes import __version__, networks
from timing import ratio

device = 'cuda' if torch.cuda.is_available() else 'cpu'
clock = time.perf_counter if device == 'cuda' else time.process_time   # a processor that waits for the GPU does not work
n = 128 if device == 'cuda' else 8
thin, wide = 'preact1001', ('wrn_16_8', 'wrn_40_4', 'wrn_28_10')


def stepper(name):
    "A function that takes one training step of the net of this name"
    torch.manual_seed(0)
    net, x, y = networks.build(name).to(device), torch.randn(n, 3, 32, 32, device=device), torch.randint(0, 10, (n,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=.9, foreach=True)
    def step():
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        if device == 'cuda': torch.cuda.synchronize()
    return step


torch.set_num_threads(1)
here = dict(preset=f'{n} images of 32 x 32, float32, one thread', device=device, python=platform.python_version(), torch=torch.__version__, resnotes=__version__)
deep, lines = stepper(thin), []
for name in wide:
    median, low, high = ratio(deep, stepper(name), runs=5, clock=clock)
    print(f'{f"a step of {thin} over one of {name}":72} x{median:.2f}  ({low:.2f}-{high:.2f})', flush=True)
    lines.append(dict(thin=thin, wide=name, median=median, low=low, high=high, **here,
                      finished=datetime.now(timezone.utc).isoformat(timespec='seconds')))
if len(sys.argv) > 1:
    with open(sys.argv[1], 'w') as f: f.writelines(json.dumps(l) + '\n' for l in lines)
