"What the callbacks cost: an epoch with them beside one without"
import tempfile

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader

from resnotes import networks
from resnotes.callbacks import SignalRecorder, Watch
from resnotes.learner import segmenter
from resnotes.resume import Resume
from resnotes.unet import UNetConfig
from timing import Pair, row


@row('an epoch of 25 steps, 16 images of 33 x 33, strict U-Net of 10 blocks')
def callbacks(smoke):
    steps = 3 if smoke else 25
    tiles = [(torch.randn(1, 33, 33), (torch.rand(1, 33, 33) > .5).float()) for _ in range(16*steps)]
    model = networks.build(UNetConfig((2,)*5, width=8))
    def epoch(*makers):
        def run():
            with tempfile.TemporaryDirectory() as folder:
                dls = DataLoaders(DataLoader(tiles, bs=16), DataLoader(tiles[:16], bs=16))
                learn = segmenter(dls, model, .01, cbs=[make(folder) for make in makers])
                with learn.no_bar(), learn.no_logging(): learn.fit(1)
        return run
    def recorder(every): return lambda folder: SignalRecorder(every=every)
    def watch(folder): return Watch()
    made = {f'SignalRecorder(every={n})': (recorder(n),) for n in (25, 10, 1)}
    made |= {'Watch()': (watch,), 'Resume, two checkpoints': (Resume,),
             'SignalRecorder(25), Watch(), Resume': (recorder(25), watch, Resume)}
    for name, makers in made.items():
        yield Pair('no callback', epoch(*makers), epoch(), ours_is=name, runs=3)
