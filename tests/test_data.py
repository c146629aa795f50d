"Edge cases of the loaders: splits, seeds, folders, masks, run lengths and what they refuse"
import os
import shutil
from pathlib import Path
from types import MethodType
from urllib.error import URLError

import numpy as np
import pytest
import torch
from fastai.data.core import TfmdDL
from fastai.distributed import DistributedDL
from fastai.learner import Learner
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

import fastai.callback.progress  # noqa: F401, gives the Learner its bar, and the means to hide it
import resnotes.data as data
from resnotes.data import (BinaryMask, Cutout, Flip, GreyTile, MemoryDL, ReflectCrop, TileNorm, baseline_iou, cifar10, coverage, digits,
                           masks, nuclei, otsu_masks, otsu_thresholds, read_image, read_mask, read_submission, rle_decode,
                           rle_encode, salt, salt_section, salt_sections, stratified_split, write_submission)
from resnotes.losses import BCEMaskLoss, IoULoss, LovaszLoss, MixedLoss
from resnotes.metrics import iou, mask_metric

def plain(x): return x.as_subclass(torch.Tensor)


# digits

def test_digits_parts_are_disjoint_complete_and_stratified():
    dls = digits(seed=3, valid_pct=.25)
    a, b = map(set, dls.splits)
    assert not a & b and len(a | b) == 1797
    y = [np.bincount([int(y) for _, y in ds])/len(ds) for ds in (dls.train_ds, dls.valid_ds)]
    assert np.abs(y[0] - y[1]).max() < .005

def test_digits_split_and_order_follow_the_seed():
    first, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    assert list(first.splits[1]) == list(again.splits[1]) != list(other.splits[1])
    for _ in range(2):  # also in the second pass
        for (x, _), (z, _) in zip(first.train, again.train): assert torch.equal(x, z)

def test_digits_take_no_random_number_from_outside():
    torch.manual_seed(0); a = digits().one_batch()[0]
    torch.manual_seed(1); b = digits().one_batch()[0]
    assert torch.equal(a, b)

def test_digits_decode_to_the_scans():
    dls = digits(bs=360)
    x, y = next(iter(dls.valid))
    shown = dls.valid.decode((x, y))[0].as_subclass(torch.Tensor)  # back on the scale 0 to 16, cut to whole numbers
    i = dls.splits[1][0]
    assert np.allclose(shown[0,0], data.load_digits().images[i], atol=1)

@pytest.mark.parametrize('kw, said', [(dict(bs=0), 'bs'), (dict(seed=-1), 'seed'), (dict(valid_pct=0), 'valid_pct'),
                                      (dict(valid_pct=1.), 'valid_pct'), (dict(bs=2.5), 'bs')])
def test_digits_refuse(kw, said):
    with pytest.raises((ValueError, TypeError), match=said): digits(**kw)


# CIFAR-10

@pytest.fixture
def folder(tmp_path):
    "A miniature in fastai's layout: 2 classes, 6 training and 2 test images each"
    for part, k in (('train', 6), ('test', 2)):
        for c, name in enumerate(('cat', 'ship')):
            d = tmp_path/'cifar10'/part/name
            d.mkdir(parents=True)
            for i in range(k): Image.fromarray(np.full((32,32,3), 40*i + 10*c, np.uint8)).save(d/f'{i:05}.png')
    (tmp_path/'cifar10'/'labels.txt').write_text('cat\nship\n')
    return tmp_path/'cifar10'

def test_cifar_parts_come_from_the_folders(folder):
    dls = cifar10(folder, bs=4)
    assert (len(dls.train_ds), len(dls.valid_ds), list(dls.vocab)) == (12, 4, ['cat', 'ship'])
    assert all(f.parent.parent.name == 'test' for f in dls.valid_ds.items)
    assert dls.one_batch()[0].shape == (4,3,32,32)

def test_cifar_subset_is_even_over_classes(folder):
    dls = cifar10(folder, n=4, bs=2)
    assert sorted(f.parent.name for f in dls.train_ds.items) == ['cat', 'cat', 'ship', 'ship']
    assert len(cifar10(folder, n=10**6, bs=2).train_ds) == 12

def test_cifar_looks_into_the_environment(folder, monkeypatch):
    monkeypatch.setenv('RESNOTES_DATA', str(folder.parent))
    assert len(cifar10(bs=2).train_ds) == 12
    monkeypatch.setenv('RESNOTES_DATA', str(folder))
    with pytest.raises(FileNotFoundError, match='RESNOTES_DATA must name a folder'): cifar10()

def test_cifar_names_path_and_layout(tmp_path):
    for path in (tmp_path, tmp_path/'nowhere', str(tmp_path)):
        with pytest.raises(FileNotFoundError, match='<class>') as e: cifar10(path)
        assert repr(str(path)) in str(e.value)

def test_cifar_without_network(monkeypatch):
    def offline(url): raise URLError('no network')
    monkeypatch.delenv('RESNOTES_DATA', raising=False)
    monkeypatch.setattr(data, 'untar_data', offline)
    with pytest.raises(FileNotFoundError, match='RESNOTES_DATA'): cifar10()

@pytest.mark.parametrize('kw, said', [(dict(bs=0), 'bs'), (dict(n=0), 'n must'), (dict(seed=-1), 'seed')])
def test_cifar_refuses(folder, kw, said):
    with pytest.raises(ValueError, match=said): cifar10(folder, **kw)

def test_cifar_small_takes_its_folder_or_an_even_choice(folder, monkeypatch):
    monkeypatch.setenv('RESNOTES_DATA', str(folder.parent))
    shutil.copytree(folder, folder.parent/'cifar10_small')
    assert cifar10(small=True, bs=2).train_ds.items[0].parts[-4] == 'cifar10_small'
    assert cifar10(bs=2).train_ds.items[0].parts[-4] == 'cifar10'
    folder.rename(folder.parent/'elsewhere')
    with pytest.raises(FileNotFoundError, match='holds cifar10, got'): cifar10(bs=2)   # a tenth does not stand in for the whole
    (folder.parent/'elsewhere').rename(folder)
    shutil.rmtree(folder.parent/'cifar10_small')
    assert len(cifar10(small=True, bs=2).train_ds) == 12
    assert len(cifar10(small=True, n=2, bs=2).train_ds) == 2

@pytest.mark.parametrize('n', (1, 5, 7, 11))
def test_cifar_keeps_exactly_n(folder, n): assert len(cifar10(folder, n=n, bs=1).train_ds) == n

def test_cifar_pixels_and_labels_fit_the_files(folder):
    dls = cifar10(folder, bs=4)
    for x, y in dls.valid: pass
    for f, pixels, label in zip(dls.valid_ds.items, *dls.valid.columns):
        assert torch.equal(plain(pixels), torch.tensor(np.array(Image.open(f))).permute(2,0,1))
        assert dls.vocab[int(label)] == f.parent.name
    by_fastai = dls.valid.new(cls=TfmdDL)
    for (x, y), (a, b) in zip(dls.valid, by_fastai): assert torch.equal(x, a) and torch.equal(y, b)

def test_cifar_names_an_unreadable_file(folder):
    bad = folder/'train'/'cat'/'00002.png'
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(ValueError, match='00002.png is not a readable image'): cifar10(folder, bs=2)

def test_cifar_augments_the_training_part_alone(folder):
    dls, bare = cifar10(folder, bs=4, augment=True, cutout=8), cifar10(folder, bs=4)
    assert torch.equal(dls.valid.one_batch()[0], bare.valid.one_batch()[0])
    x = dls.one_batch()[0]
    assert ((x == 0).all(1).sum((1,2)) > 0).all()

def test_too_large_a_batch_is_named(folder):
    with pytest.raises(ValueError, match='bs must be at most .* 12, got 13'): cifar10(folder, bs=13)


# memory

def test_memory_reads_each_item_once():
    seen = []
    class Items:
        def __len__(self): return 6
        def __getitem__(self, i): seen.append(i); return torch.full((1,2,2), float(i)), torch.tensor(i)
    dl = MemoryDL(Items(), bs=4, num_workers=0)
    for _ in range(3): assert [len(y) for _, y in dl] == [4, 2]
    assert sorted(seen) == list(range(6))

def test_memory_serves_several_processes():
    dls = salt(40, bs=8, size=16, seed=1)
    parts = []
    for rank in (0, 1):
        dls.train.rng.seed(3)
        dl = DistributedDL(dls.train, rank=rank, world_size=2)
        dl._broadcast = MethodType(lambda self, t, rank: list(t), dl)
        parts.append(torch.cat([plain(y) for _, y in dl]))
    dls.train.rng.seed(3)
    alone = torch.cat([plain(y) for _, y in dls.train])
    assert len(torch.cat(parts)) == len(alone) == 32
    assert torch.equal(torch.cat(parts).sum((1,2,3)).sort().values, alone.sum((1,2,3)).sort().values)


# masks of all loaders, as the losses and metrics of the book take them

@pytest.mark.parametrize('kw', [dict(), dict(augment=True), dict(augment=True, cutout=6), dict(norm='set'), dict(size=17), dict(bs=1)])
def test_batches_are_float_images_and_masks(kw):
    dls = salt(n=40, **{**dict(size=24, bs=8), **kw})
    for dl in dls:
        for x, y in dl:
            assert x.shape == y.shape and x.shape[1] == 1 and x.dtype == y.dtype == torch.float32
            assert x.isfinite().all() and set(y.unique().tolist()) <= {0., 1.}

@pytest.mark.parametrize('loss', [IoULoss(), IoULoss(over='batch'), BCEMaskLoss(), LovaszLoss(), LovaszLoss('sigmoid'),
                                  MixedLoss((BCEMaskLoss(), 1.), (IoULoss(), .5))])
def test_losses_take_a_batch_in_a_learner_and_outside(loss):
    dls = salt(n=24, size=16, bs=8)
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    x, y = dls.one_batch()
    loss(net(x), y).backward()
    assert torch.isclose(plain(loss(net(x), y)), loss(net(plain(x)), plain(y)))
    learn = Learner(dls, net, loss_func=loss, metrics=mask_metric(iou))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert np.isfinite(learn.recorder.values[-1]).all()

def test_show_batch_draws(monkeypatch):
    import matplotlib.pyplot as plt
    dls = salt(n=24, size=16, bs=8)
    dls.show_batch(max_n=4)
    drawn = [ax for ax in plt.gcf().axes if ax.images]
    assert len(drawn) == 4 and all(len(ax.images) == 2 for ax in drawn)
    plt.close('all')


# salt

def test_sections_do_not_depend_on_their_number():
    a, b = salt_sections(3, seed=4, size=32), salt_sections(6, seed=4, size=32)
    assert all(torch.equal(x, y[:3]) for x, y in zip(a, b))

@pytest.mark.parametrize('size', (16, 33, 51, 101, 128))
def test_sections_of_any_size(size):
    x, y = salt_sections(8, size=size)
    assert x.shape == y.shape == (8,1,size,size) and x.dtype == y.dtype == torch.uint8 and y.max() == 1
    assert x.float().std((1,2,3)).min() > 0

def test_salt_shares_nothing_with_the_global_generators():
    torch.manual_seed(0); np.random.seed(0); a = salt(n=20, size=16, bs=4).one_batch()
    torch.manual_seed(1); np.random.seed(1); b = salt(n=20, size=16, bs=4).one_batch()
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

def test_salt_splits_alike_in_coverage():
    dls = salt(n=200, size=32, seed=2)
    train, valid = (coverage(dl.columns[1]) for dl in dls)
    assert len(valid) == 40 and abs((train == 0).float().mean() - (valid == 0).float().mean()) < .03
    assert abs(train.mean() - valid.mean()) < .05

def test_further_sections_go_through_test_dl():
    dls = salt(n=20, size=24, bs=4, norm='set')
    x, = dls.test_dl([100, 101]).one_batch()
    assert torch.allclose(plain(dls.valid.decode((x,))[0])[0]*255, salt_section(100, 0, 24)[0].float(), atol=1e-3)

@pytest.mark.parametrize('kw, said', [(dict(n=0), 'n must'), (dict(size=8), 'size'), (dict(seed=-1), 'seed'), (dict(valid_pct=0.), 'valid_pct'),
                                      (dict(valid_pct=1.), 'valid_pct'), (dict(n=2, valid_pct=.1), 'valid_pct'), (dict(norm='batch'), 'norm'),
                                      (dict(cutout=-1), 'cutout'), (dict(bs=0), 'bs'), (dict(n=10, bs=32), 'bs must be at most')])
def test_salt_refuses(kw, said):
    with pytest.raises((ValueError, TypeError), match=said): salt(**{**dict(n=20, size=16, bs=4), **kw})


# normalisation

def test_norm_survives_constant_tiles_half_precision_and_a_batch_of_one():
    x = GreyTile(torch.stack([torch.full((1,7,9), v) for v in (0., .5, 1.)]))
    assert plain(TileNorm()(x)).abs().max() < 1e-3
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        out = TileNorm()(GreyTile(torch.rand(1,1,7,9).to(dtype)))
        assert out.isfinite().all() and abs(out.double().std(correction=0) - 1) < .05
    assert TileNorm()(GreyTile(torch.rand(1,1,1,1))).abs().max() == 0

def test_norm_takes_channels_last_and_strided_tiles():
    x = torch.rand(2,1,8,8)
    for y in (x.contiguous(memory_format=torch.channels_last), torch.rand(2,1,8,16)[...,::2].copy_(x)):
        assert torch.allclose(plain(TileNorm()(GreyTile(y))), plain(TileNorm()(GreyTile(x))), atol=1e-6)

def test_columns_must_fit():
    with pytest.raises(ValueError, match='columns must have 4 items, got 3'): salt(n=20, size=16, bs=4).valid.fill(torch.zeros(3,1,16,16))

def test_norm_refuses_a_guard_of_zero():
    with pytest.raises(ValueError, match='guard'): TileNorm(0)


# augmentation

def pair(n=6, h=9, w=11, c=1):
    x = torch.arange(n*c*h*w, dtype=torch.float32).reshape(n,c,h,w)
    return GreyTile(x), BinaryMask(x[:,:1].clone())

@pytest.mark.parametrize('tfm', [Flip(), ReflectCrop(3), ReflectCrop(8)])
def test_masks_follow_their_images(tfm):
    x, y = tfm(pair(), split_idx=0)
    assert type(x) is GreyTile and type(y) is BinaryMask and torch.equal(plain(x), plain(y))
    assert not torch.equal(plain(x), plain(pair()[0]))

@pytest.mark.parametrize('tfm', [Flip(), ReflectCrop(3), Cutout(4)])
def test_a_restored_generator_repeats_the_batch(tfm):
    state = torch.get_rng_state()
    first, second = (tfm(pair(), split_idx=0)[0] for _ in range(2))
    torch.set_rng_state(state)
    assert torch.equal(first, tfm(pair(), split_idx=0)[0]) and torch.equal(second, tfm(pair(), split_idx=0)[0])

@pytest.mark.parametrize('split_idx', (1, None))
def test_nothing_is_drawn_outside_the_training_part(split_idx):
    state = torch.get_rng_state()
    for tfm in (Flip(), ReflectCrop(3), Cutout(4)):
        assert torch.equal(tfm(pair(), split_idx=split_idx)[0], pair()[0])
    assert torch.equal(state, torch.get_rng_state())

def test_labels_are_left_alone():
    y = torch.arange(6)
    assert Flip()((pair()[0], y), split_idx=0)[1] is y

def test_crop_of_three_channels_moves_all_alike():
    x = torch.rand(5,1,8,8).expand(5,3,8,8) + torch.arange(3)[:,None,None]
    out = plain(ReflectCrop(4)(GreyTile(x), split_idx=0))
    assert torch.allclose(out[:,0], out[:,1] - 1, atol=1e-6) and torch.allclose(out[:,0], out[:,2] - 2, atol=1e-6)

def test_an_epoch_of_random_changes_repeats_from_a_saved_state():
    dls = salt(n=40, size=16, bs=8, augment=True, cutout=4)
    def epoch():
        torch.manual_seed(7); dls.train.rng.seed(7)
        return [plain(x) for x, _ in dls.train]
    for a, b in zip(epoch(), epoch()): assert torch.equal(a, b)

@pytest.mark.parametrize('make, said', [(lambda: ReflectCrop(0), 'pad'), (lambda: Cutout(0), 'side'), (lambda: Cutout(2.5), 'side')])
def test_augmentation_refuses(make, said):
    with pytest.raises((ValueError, TypeError), match=said): make()


# splits

@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0., 0., .1, .5, 1.]), min_size=4, max_size=60), st.floats(.1, .9), st.integers(0, 5))
def test_split_is_a_partition_of_the_right_size(values, pct, seed):
    n = round(len(values)*pct)
    if not 0 < n < len(values):
        with pytest.raises(ValueError, match='valid_pct'): stratified_split(values, pct, seed)
        return
    train, valid = stratified_split(values, pct, seed)
    assert sorted(train + valid) == list(range(len(values))) and len(valid) == n
    for v in set(values):   # no value misses its share by more than one item at each end of its run
        assert abs(sum(values[i] == v for i in valid) - pct*values.count(v)) <= 2
    assert (train, valid) == stratified_split(values, pct, seed)


# folders of masks

def write(folder, n=8, side=20, first=0, bits=8, colour=False):
    "Pairs of images and masks in `folder`; the mask of pair i has i rows of ones"
    for part in ('images', 'masks'): (folder/part).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        x = (np.arange(side*side).reshape(side, side) + 7*i).astype(np.uint8)
        im = Image.fromarray(x)
        (im.convert('RGB') if colour else im).save(folder/'images'/f'{i:03}.png')
        y = np.zeros((side, side), np.uint8); y[:i % side] = 1
        mask = {1: lambda: Image.fromarray(y.astype(bool)), 8: lambda: Image.fromarray(y*np.uint8(255)),
                16: lambda: Image.fromarray(y.astype(np.uint16)*65535)}[bits]()
        mask.save(folder/'masks'/f'{i:03}.png')
    return folder

@pytest.mark.parametrize('bits', (1, 8, 16))
@pytest.mark.parametrize('colour', (False, True))
def test_masks_of_any_depth_and_grey_or_colour_images(tmp_path, bits, colour):
    dls = masks(write(tmp_path, bits=bits, colour=colour), valid=.25, bs=2, norm='set')
    assert (len(dls.train_ds), len(dls.valid_ds)) == (6, 2)
    for dl, ds in zip(dls, (dls.train_ds, dls.valid_ds)):
        for f, x, y in zip(ds.items, *dl.columns):
            i = int(f.stem)
            assert y.sum() == 20*i
            assert torch.equal(plain(x)[0], torch.tensor((np.arange(400).reshape(20,20) + 7*i).astype(np.uint8)))

def test_items_and_batches_agree(tmp_path):
    dls = masks(write(tmp_path), bs=2)
    by_fastai = dls.valid.new(cls=TfmdDL)
    for (x, y), (a, b) in zip(dls.valid, by_fastai): assert torch.equal(x, a) and torch.equal(y, b)

def test_kaggle_layout_and_folder_of_its_own(tmp_path):
    write(tmp_path/'train', n=10)
    assert len(masks(tmp_path, bs=2).valid_ds) == 2
    with pytest.raises(FileNotFoundError, match='valid'): masks(tmp_path, valid='folder')
    write(tmp_path/'valid', n=3, first=50)
    dls = masks(tmp_path, bs=2)
    assert len(dls.train_ds) == 10 and {f.parts[-3] for f in dls.valid_ds.items} == {'valid'}
    assert len(masks(tmp_path, valid=.5, bs=2).valid_ds) == 5

def test_same_names_in_both_folders_are_told_apart(tmp_path):
    write(tmp_path/'train', n=4), write(tmp_path/'valid', n=4)
    mask = np.full((20,20), 255, np.uint8)
    Image.fromarray(mask).save(tmp_path/'valid'/'masks'/'000.png')
    dls = masks(tmp_path, bs=2)
    assert dls.valid.columns[1][0].all() and not dls.train.columns[1][0].any()
    assert dls.valid_ds[0][1].all() and not dls.train_ds[0][1].any()

def test_n_thins_both_parts(tmp_path):
    write(tmp_path/'train', n=12), write(tmp_path/'valid', n=6)
    dls = masks(tmp_path, n=4, bs=2)
    assert ([f.stem for f in dls.train_ds.items], [f.stem for f in dls.valid_ds.items]) == (['000','003','006','009'], ['000','003'])
    assert len(masks(tmp_path, n=10**6, bs=2).train_ds) == 12
    dls = masks(tmp_path/'train', n=3, valid=.5, bs=2)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (3, 3)

@pytest.mark.parametrize('size, top', [(19, 0), (18, 1), (13, 3), (20, 0)])
def test_size_keeps_the_centre(tmp_path, size, top):
    write(tmp_path)
    x, y = masks(tmp_path, size=size, bs=2, valid=.25).valid.columns
    i = int(masks(tmp_path, size=size, bs=2, valid=.25).valid_ds.items[0].stem)
    whole = read_image(tmp_path/'images'/f'{i:03}.png')
    assert torch.equal(plain(x[0]), whole[:,top:top+size,top:top+size])
    assert y[0].sum() == size*min(size, max(0, i - top))

def test_test_images_need_no_masks(tmp_path):
    write(tmp_path/'train', n=8)
    write(tmp_path/'test', n=3, first=90)
    shutil.rmtree(tmp_path/'test'/'masks')
    dls = masks(tmp_path, bs=2)
    x, = dls.test_dl(sorted((tmp_path/'test'/'images').iterdir())).one_batch()
    assert x.shape == (2,1,20,20)

def test_sixteen_bit_images_keep_their_range(tmp_path):
    x = np.array([[0, 257, 65535], [128*257, 1000, 64]], np.uint16)
    Image.fromarray(x).save(tmp_path/'x.png')
    assert read_image(tmp_path/'x.png')[0].tolist() == np.rint(x/257).astype(int).tolist()
    Image.fromarray(np.array([[0, 1]], bool)).save(tmp_path/'b.png')
    assert read_image(tmp_path/'b.png')[0].tolist() == [[0, 255]]

def test_colour_becomes_luminance_and_transparency_is_dropped(tmp_path):
    x = np.zeros((1,3,3), np.uint8); x[0,0,0] = x[0,1,1] = x[0,2,2] = 255
    Image.fromarray(x).save(tmp_path/'c.png')
    assert read_image(tmp_path/'c.png')[0].tolist() == [[76, 150, 29]]
    Image.fromarray(np.dstack([np.full((2,2,3), 90, np.uint8), np.zeros((2,2), np.uint8)])).save(tmp_path/'a.png')
    assert (read_image(tmp_path/'a.png') == 90).all()
    Image.fromarray(np.dstack([np.full((2,2), 90, np.uint8)]*2), 'LA').save(tmp_path/'la.png')
    assert (read_image(tmp_path/'la.png') == 90).all()

def test_masks_all_one_and_all_zero_are_masks(tmp_path):
    for v in (0, 1, 255):
        Image.fromarray(np.full((3,3), v, np.uint8)).save(tmp_path/f'{v}.png')
        assert read_mask(tmp_path/f'{v}.png').float().mean() == (v > 0)

@pytest.mark.parametrize('part', ('images', 'masks'))
def test_floating_point_files_are_refused(tmp_path, part):
    write(tmp_path)
    (tmp_path/part/'003.png').unlink()
    Image.fromarray(np.ones((20,20), np.float32)).save(tmp_path/part/'003.tif')
    with pytest.raises(ValueError, match='003.tif is not a readable image: it holds floating-point numbers'): masks(tmp_path, bs=2)

def test_names_and_endings_of_all_kinds(tmp_path):
    write(tmp_path, n=4)
    for old, new in zip(('000', '001', '002', '003'), ('Fjällräven.PNG', '岩塩.png', 'a b.c.Png', "it's,.png")):
        for part in ('images', 'masks'): (tmp_path/part/f'{old}.png').rename(tmp_path/part/new)
    for junk in ('Thumbs.db', '.DS_Store', 'notes.txt'): (tmp_path/'masks'/junk).write_text('no image')
    dls = masks(tmp_path, valid=.5, bs=1)
    sums = {f.stem: int(y.sum()) for ds in (dls.train_ds, dls.valid_ds) for f, (_, y) in zip(ds.items, ds)}
    assert sums == {'Fjällräven': 0, '岩塩': 20, 'a b.c': 40, "it's,": 60}

@pytest.fixture
def spoilt(tmp_path): return write(tmp_path)

@pytest.mark.parametrize('empty', ('valid', 'valid/images', 'valid/images valid/masks'))
def test_an_empty_validation_folder_is_named(tmp_path, empty):
    write(tmp_path/'train')
    for name in empty.split(): (tmp_path/name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='valid must hold images/ and masks/, found no image files in .*valid.images'): masks(tmp_path, bs=2)

def test_one_pair_is_too_few_and_two_are_enough(tmp_path):
    write(tmp_path, n=1)
    with pytest.raises(ValueError, match='valid must leave tiles in both parts, got 0.2 of the 1 in'): masks(tmp_path, bs=1)
    write(tmp_path, n=2)
    assert [len(ds) for ds in (masks(tmp_path, valid=.5, bs=1).train_ds, masks(tmp_path, valid=.5, bs=1).valid_ds)] == [1, 1]
    with pytest.raises(ValueError, match='pairs must not be empty'): data.read_pairs([])

def test_missing_folders_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='nowhere'): masks(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='images'): masks(tmp_path)
    (tmp_path/'images').mkdir()
    Image.fromarray(np.zeros((4,4), np.uint8)).save(tmp_path/'images'/'a.png')
    with pytest.raises(FileNotFoundError, match='found no image files in .*masks'): masks(tmp_path)
    monkeypatch.delenv('RESNOTES_DATA', raising=False)
    with pytest.raises(FileNotFoundError, match='RESNOTES_DATA'): nuclei()
    monkeypatch.setenv('RESNOTES_DATA', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='nuclei, got'): nuclei()
    write(tmp_path/'nuclei')
    assert len(nuclei(bs=2).train_ds) == 6

@pytest.mark.parametrize('gone', ('images', 'masks'))
def test_a_missing_partner_is_named(spoilt, gone):
    (spoilt/gone/'004.png').unlink()
    other = 'masks' if gone == 'images' else 'images'
    with pytest.raises(FileNotFoundError, match='004.png has no partner') as e: masks(spoilt)
    assert str(spoilt/other/'004.png') in str(e.value) and '7' in str(e.value)

def test_twins_are_named(spoilt):
    Image.fromarray(np.zeros((20,20), np.uint8)).save(spoilt/'images'/'004.jpg')
    with pytest.raises(ValueError, match='twin'): masks(spoilt)

@pytest.mark.parametrize('part', ('images', 'masks'))
@pytest.mark.parametrize('content', (b'', b'no image at all', None))
def test_an_unreadable_file_is_named(spoilt, part, content):
    file = spoilt/part/'002.png'
    file.write_bytes(file.read_bytes()[:50] if content is None else content)
    with pytest.raises(ValueError, match='is not a readable image') as e: masks(spoilt)
    assert str(file) in str(e.value)

def test_wrong_sizes_are_named(spoilt):
    Image.fromarray(np.zeros((20,21), np.uint8)).save(spoilt/'masks'/'005.png')
    with pytest.raises(ValueError, match='005.png is 20x21, its image'): masks(spoilt)
    Image.fromarray(np.zeros((20,21), np.uint8)).save(spoilt/'images'/'005.png')
    with pytest.raises(ValueError, match='005.png is 20x21, .*000.png is 20x20; size='): masks(spoilt)
    assert masks(spoilt, size=16, bs=2).one_batch()[0].shape[-2:] == (16, 16)
    with pytest.raises(ValueError, match='size must be at most the sides of .*000.png, 20 and 20, got 21'): masks(spoilt, size=21)

@pytest.mark.parametrize('values', ([0, 128, 255], [0, 128], [1, 255], [7, 7]))
def test_masks_of_other_values_are_named(spoilt, values):
    Image.fromarray(np.resize(np.array(values, np.uint8), (20,20))).save(spoilt/'masks'/'006.png')
    with pytest.raises(ValueError, match='006.png must hold 0 and one of 1, 255, 65535'): masks(spoilt)

@pytest.mark.parametrize('kw, said', [(dict(valid='test'), 'valid'), (dict(valid=0.), 'valid must'), (dict(valid=1.5), 'valid must'), (dict(valid=True), 'valid must'), (dict(valid=.01), 'valid must leave tiles in both parts, got 0.01 of the 8 in'), (dict(n=0), 'n must'),
                                      (dict(size=0), 'size'), (dict(bs=0), 'bs'), (dict(seed=-2), 'seed'), (dict(norm='no'), 'norm'), (dict(bs=9), 'bs must be at most')])
def test_masks_refuse(spoilt, kw, said):
    with pytest.raises((ValueError, TypeError), match=said): masks(spoilt, **{**dict(bs=2), **kw})


# run lengths

binary = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))

@settings(max_examples=150, deadline=None)
@given(binary)
def test_run_lengths_come_back(mask):
    text = rle_encode(mask)
    assert np.array_equal(rle_decode(text, mask.shape).numpy(), mask)
    runs = np.array(text.split(), int).reshape(-1, 2)
    assert set(np.concatenate([np.arange(a, a + n) for a, n in runs] or [[]])) == {1 + i for i, v in enumerate(mask.T.ravel()) if v}
    assert (runs[1:,0] > runs[:-1].sum(1)).all()   # sorted, and runs that touch are one run

def test_run_lengths_of_any_mask_type():
    m = torch.tensor([[0,1],[1,1]])
    for form in (m, m.bool(), m.float(), m[None], m.numpy(), BinaryMask(m[None].float()), m.T.contiguous().T):
        assert rle_encode(form) == '2 3'
    assert rle_encode(torch.zeros(3,3)) == '' and rle_encode(torch.ones(101,101)) == f'1 {101*101}'
    for bad in (m*255, m[None].repeat(2,1,1), m[0]):
        with pytest.raises(ValueError, match='mask'): rle_encode(bad)

@pytest.mark.parametrize('text', ('1', '1 2 3', 'a b', '1 -2', '0 3', '1 0', '3 2 1 1', '1 3 3 1', '9 2', '1.5 2', '1 2,3 4', '\u00b2 1'))
def test_malformed_run_lengths_are_refused_by_row(tmp_path, text):
    with pytest.raises(ValueError, match='run lengths'): rle_decode(text, (3,3))
    file = tmp_path/'s.csv'
    file.write_text(f'id,rle_mask\ngood,1 2\nbad1,"{text}"\n', encoding='utf-8')
    with pytest.raises(ValueError, match=r"row 3 \(id 'bad1'\)"): read_submission(file, (3,3))

def test_submissions_come_back(tmp_path):
    x = {f'im{i}': torch.rand(1,5,4) > .5 for i in range(4)} | {'none': torch.zeros(5,4), 'with,comma': torch.ones(5,4)}
    file = write_submission(tmp_path/'s.csv', x)
    assert file.read_text().splitlines()[0] == 'id,rle_mask' and file.read_text().splitlines()[5] == 'none,'
    back = read_submission(file, (5,4))
    assert list(back) == list(x) and all(torch.equal(back[k].bool(), x[k].reshape(5,4).bool()) for k in x)

def test_a_mark_at_the_start_and_windows_line_ends_are_read(tmp_path):
    (tmp_path/'s.csv').write_bytes('\ufeffid,rle_mask\r\na,1 2\r\nb,\r\n'.encode())
    assert {k: int(v.sum()) for k, v in read_submission(tmp_path/'s.csv', (2,2)).items()} == {'a': 2, 'b': 0}

@pytest.mark.parametrize('text', (None, float('nan'), 12))
def test_run_lengths_that_are_no_text_are_refused(text):
    with pytest.raises(TypeError, match="must be text, '' for an empty mask"): rle_decode(text, (2,2))

def test_coverage_takes_masks_of_0_and_1_alone():
    assert coverage(torch.ones(2,3,3).bool()).tolist() == [1, 1]
    with pytest.raises(ValueError, match='masks must hold 0 and 1 only'): coverage(torch.full((2,1,3,3), 255))

@pytest.mark.parametrize('content, said', [('', 'header'), ('a,b\n', 'header'), ('id,rle_mask\nx\n', 'row 2 must be'), ('id,rle_mask\nx,1 1,2\n', 'row 2 must be'),
                                           ('id,rle_mask\nx,\nx,1 1\n', 'row 3 repeats')])
def test_malformed_submissions_are_refused(tmp_path, content, said):
    (tmp_path/'s.csv').write_text(content)
    with pytest.raises(ValueError, match=said) as e: read_submission(tmp_path/'s.csv')
    assert 's.csv' in str(e.value)


# the baseline

@settings(max_examples=80, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8)))
def test_otsu_against_every_threshold(tile):
    t = otsu_thresholds(torch.tensor(tile)[None]).item()
    levels = np.unique(tile)
    if len(levels) == 1:
        assert np.isnan(t) and not otsu_masks(torch.tensor(tile)[None]).any()
        return
    x = tile.astype(float)
    def between(s):
        w = (x <= s).mean()
        return w*(1 - w)*(x[x <= s].mean() - x[x > s].mean())**2
    best = max(between(s) for s in levels[:-1])
    assert t in levels[:-1] and between(t) >= best*(1 - 1e-9)

def test_otsu_takes_the_forms_of_images():
    x = torch.rand(3,1,9,9, generator=torch.Generator().manual_seed(0))
    whole = otsu_masks(x)
    for form in (x[:,0], x.contiguous(memory_format=torch.channels_last), GreyTile(x), x.double(), x*5 - 2, (x*1e3).int()):
        assert torch.equal(otsu_masks(form).reshape(whole.shape), whole)
    assert whole.dtype == torch.uint8 and (whole.float().mean((1,2,3)) <= .5).all()
    assert torch.equal(otsu_masks(x, 'bright'), 1 - otsu_masks(x, 'dark'))
    for bad in (x[0,0], torch.zeros(2,3,4,4)):
        with pytest.raises(ValueError, match='images must be'): otsu_masks(bad)

def test_baseline_is_one_on_plain_blobs(tmp_path):
    for part in ('images', 'masks'): (tmp_path/part).mkdir()
    for i in range(8):
        y = np.zeros((20,20), np.uint8); y[3:3+i, 4:9] = 1
        Image.fromarray(40 + 100*y).save(tmp_path/'images'/f'{i}.png'), Image.fromarray(255*y).save(tmp_path/'masks'/f'{i}.png')
    dls = masks(tmp_path, bs=2)
    assert baseline_iou(dls) == baseline_iou(dls, 'bright', over='image') == 1 and baseline_iou(dls, 'dark') == 0


# real data, where there are any

@pytest.mark.skipif(not (Path(os.environ.get('RESNOTES_DATA', ''))/'nuclei').is_dir() or 'RESNOTES_DATA' not in os.environ,
                    reason='RESNOTES_DATA does not name a folder that holds nuclei')
def test_nuclei_as_unpacked():
    dls = nuclei(n=350, augment=True)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (350, 84)
    for x, y in dls.train: assert x.shape[1:] == (1,101,101) and x.isfinite().all()
    assert .4 < baseline_iou(dls) < .9
