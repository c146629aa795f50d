"Tiles from files to batches: the first epoch and the later ones, beside fastai's own loaders"
import os, tempfile, time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnotes.data import masks
from timing import Left, Pair, row, seconds


def made_tiles(folder, n, side=33):
    "Noise with masks, in the folders that both libraries read"
    rng = np.random.default_rng(0)
    for part, count in (('train', n), ('valid', n//4)):
        for i in range(count):
            for kind in ('images', 'masks'):
                (folder/part/kind).mkdir(parents=True, exist_ok=True)
                a = rng.integers(0, 256, (side, side), np.uint8)
                Image.fromarray(255*(a > 127).astype(np.uint8) if kind == 'masks' else a).save(folder/part/kind/f'{i}.png')
    return folder


def epoch(dls):
    "Every batch of both parts, once"
    for dl in dls:
        for _ in dl: pass


def fastai_loaders(folder):
    "fastai's way: files are read when they are needed; grey images, masks of 0 and 1"
    from fastai.data.transforms import get_image_files
    from fastai.vision.core import PILImageBW
    from fastai.vision.data import SegmentationDataLoaders
    files = get_image_files(folder, folders=['train', 'valid'])
    files = [f for f in files if f.parent.name == 'images']
    def mask_of(f): return f.parent.parent/'masks'/f.name
    return SegmentationDataLoaders.from_label_func(folder, files, mask_of, bs=32, seed=0, num_workers=0,
                                                   img_cls=PILImageBW)


def loaders(folder):
    "Both, with a first epoch that includes whatever is read once"
    def first(make): return lambda: epoch(make(folder))
    theirs = first(fastai_loaders)
    yield Pair("fastai's SegmentationDataLoaders", first(masks), theirs, ours_is='first epoch', runs=1,
               profile='functions')
    yield Pair("fastai's SegmentationDataLoaders", first(lambda f: masks(f, num_workers=2)), theirs, runs=1,
               ours_is='first epoch, two threads, wall clock', clock=time.perf_counter, profile='functions')
    ours, theirs = masks(folder), fastai_loaders(folder)
    yield Pair("fastai's SegmentationDataLoaders", lambda: epoch(ours), lambda: epoch(theirs),
               ours_is='later epochs', runs=1, profile='functions')


@row('loading 4,342 tiles of nuclei', reach=.2)
def loading(smoke):
    beside = "fastai's SegmentationDataLoaders"
    if smoke:
        with tempfile.TemporaryDirectory() as folder: yield from loaders(made_tiles(Path(folder), 40))
        return
    data = os.environ.get('RESNOTES_DATA')
    if data and (Path(data)/'nuclei').is_dir(): yield from loaders(Path(data)/'nuclei')
    else: yield Left(beside, 'RESNOTES_DATA names no folder with nuclei')
