"What the callbacks cost: processor time of an epoch with them over one without: python benchmarks/bench_callbacks.py"
import tempfile

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from resnotes import networks
from resnotes.callbacks import SignalRecorder, Watch
from resnotes.learner import segmenter
from resnotes.resume import Resume
from resnotes.unet import UNetConfig

from timing import report

torch.set_num_threads(1)
torch.manual_seed(0)
tiles = [(torch.randn(1, 33, 33), (torch.rand(1, 33, 33) > .5).float()) for _ in range(16*25)]
model = networks.build(UNetConfig((2,)*5, width=8))


def epoch(*makers):
    "One epoch of 25 steps"
    def run():
        with tempfile.TemporaryDirectory() as folder:
            dls = DataLoaders(DataLoader(tiles, bs=16), DataLoader(tiles[:16], bs=16))
            learn = segmenter(dls, model, .01, cbs=[make(folder) for make in makers])
            with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return run


print(f'cpu, 1 thread, torch {torch.__version__}: strict U-Net with 10 blocks, 16 images of 33x33 a step, 25 steps an epoch')
plain, runs = epoch(), 3
for every in (25, 10, 1): report(f'SignalRecorder(every={every})', epoch(lambda _, every=every: SignalRecorder(every=every)), plain, runs)
report('Watch()', epoch(lambda _: Watch()), plain, runs)
report('Resume: two checkpoints in 25 steps', epoch(Resume), plain, runs)
report('all three, every=25', epoch(lambda _: SignalRecorder(25), lambda _: Watch(), Resume), plain, runs)
