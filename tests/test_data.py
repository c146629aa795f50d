"Edge cases of the loaders: splits, seeds, folders, masks and what they refuse"
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from fastai.data.core import TfmdDL
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

import resnotes.data as data
from resnotes.data import (MemoryDL, baseline_iou, cifar10, coverage, data_folder, digits, level_counts, mask_loaders, mask_pairs, masks, nuclei, otsu_masks,
                           otsu_thresholds, read_runs, set_norm, stratified_split)
from resnotes.images import RunLengths, read_image, read_mask, rle_encode, save_mask
from resnotes.salt import salt
from resnotes.tiles import BinaryMask, ClassMask, Cutout, Flip, GreyTile, ReflectCrop, TileNorm

def plain(x): return x.as_subclass(torch.Tensor)


# digits

def test_digits_parts_are_disjoint_complete_and_stratified():
    dls = digits(seed=3, valid_pct=.25)
    a, b = map(set, dls.splits)
    assert not a & b and len(a | b) == 1797
    y = [np.bincount([int(y) for _, y in ds])/len(ds) for ds in (dls.train_ds, dls.valid_ds)]
    assert np.abs(y[0] - y[1]).max() < .005

def test_a_seed_may_be_an_integer_of_numpy():
    a, b = digits(seed=np.int64(3)), digits(seed=3)
    assert all(torch.equal(p, q) for p, q in zip(a.one_batch(), b.one_batch(), strict=True))

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

def test_batches_of_validation_hold_several_classes(folder):
    "norms may be asked for the statistics of these batches; one class in each would spoil them"
    for name, grey in (('cat', 0), ('ship', 100)):
        for i in range(40): Image.fromarray(np.full((32,32,3), grey + i, np.uint8)).save(folder/'test'/name/f'{i:05}.png')
    once, again = cifar10(folder, bs=8, seed=0), cifar10(folder, bs=8, seed=1)
    assert all(0 < y.float().mean() < 1 for x, y in once.valid)
    assert once.valid_ds.items == again.valid_ds.items

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

def test_coverage_takes_masks_of_0_and_1_alone():
    assert coverage(torch.ones(2,3,3).bool()).tolist() == [1, 1]
    with pytest.raises(ValueError, match='masks must hold 0 and 1 only'): coverage(torch.full((2,1,3,3), 255))


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
    dls = masks(write(tmp_path, bits=bits, colour=colour), valid=.25, bs=2, normalize='set')
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
                                      (dict(size=0), 'size'), (dict(bs=0), 'bs'), (dict(seed=-2), 'seed'), (dict(normalize='no'), 'normalize must be one of'), (dict(bs=9), 'bs must be at most')])
def test_masks_refuse(spoilt, kw, said):
    with pytest.raises((ValueError, TypeError), match=said): masks(spoilt, **{**dict(bs=2), **kw})


# masks in a table

def as_table(folder, file, form='{},{}', header='id,rle_mask', order='column'):
    "The masks of a folder as a table of run lengths, in place of their files"
    lines = [form.format(f.stem, rle_encode(read_mask(f), order)) for f in sorted((folder/'masks').iterdir())]
    file.write_text('\n'.join([header, *lines, '']))
    shutil.rmtree(folder/'masks')

def same_batches(a, b):
    for one, other in zip(a, b):
        assert [f.stem for f in one.items] == [f.stem for f in other.items]
        for (x, y), (z, t) in zip(one, other): assert torch.equal(plain(x), plain(z)) and torch.equal(plain(y), plain(t))

@pytest.mark.parametrize('form, header', [('{},{}', 'id,rle_mask'), ('{}.png,{}', 'ImageId,EncodedPixels'), ('{0},7,"{1}",', 'id,depth,runs,note')])
@pytest.mark.parametrize('kw', [{}, dict(lazy=True), dict(lazy=True, num_workers=1), dict(num_workers=2), dict(resize=(16, 24)), dict(resize=(16, 24), lazy=True), dict(size=9), dict(pad=31)])
def test_masks_in_a_table_are_those_of_the_files(tmp_path, form, header, kw):
    write(tmp_path/'files'), write(tmp_path/'table')
    as_table(tmp_path/'table', tmp_path/'table'/'m.csv', form, header)
    columns = ['id', 'runs'] if 'note' in header else None
    same_batches(masks(tmp_path/'table', bs=2, runs='m.csv', run_columns=columns, **kw), masks(tmp_path/'files', bs=2, **kw))

@pytest.mark.parametrize('kw', [{}, dict(lazy=True), dict(lazy=True, num_workers=1), dict(resize=(16, 24))])
def test_a_table_may_count_along_the_rows_as_that_of_carvana_does(tmp_path, kw):
    write(tmp_path/'files'), write(tmp_path/'table')
    as_table(tmp_path/'table', tmp_path/'table'/'train_masks.csv', '{}.png,{}', 'img,rle_mask', 'row')
    kw = dict(bs=2, **kw)
    same_batches(masks(tmp_path/'table', runs='train_masks.csv', run_order='row', **kw), masks(tmp_path/'files', **kw))
    with pytest.raises(AssertionError): same_batches(masks(tmp_path/'table', runs='train_masks.csv', **kw), masks(tmp_path/'files', **kw))

def test_a_table_above_serves_all_parts_and_one_beside_its_own(tmp_path):
    for name in ('files', 'table'):
        write(tmp_path/name/'train', n=6), write(tmp_path/name/'valid', n=3, first=50), write(tmp_path/name/'test', n=2, first=90)
    for part in ('train', 'valid', 'test'): as_table(tmp_path/'table'/part, tmp_path/'table'/part/'m.csv')
    def as_files(runs): same_batches(masks(tmp_path/'table', bs=2, runs=runs), masks(tmp_path/'files', bs=2))
    as_files('m.csv')
    texts = [(tmp_path/'table'/part/'m.csv').read_text().split('\n', 1)[1] for part in ('train', 'valid', 'test')]
    for part in ('train', 'valid', 'test'): (tmp_path/'table'/part/'m.csv').unlink()
    (tmp_path/'table'/'all.csv').write_text('id,rle_mask\n' + ''.join(texts))
    as_files('all.csv'), as_files(tmp_path/'table'/'all.csv')
    (tmp_path/'table'/'all.csv').write_text('id,rle_mask\n' + ''.join(texts) + 'nobody,1 1\n')
    with pytest.raises(FileNotFoundError, match="all.csv, row 13 .id 'nobody'. has no partner in .*train.images; 6 images, 7 masks"): masks(tmp_path/'table', bs=2, runs='all.csv')

def test_rows_of_one_image_are_its_objects_and_the_size_is_the_upright_image_s(tmp_path):
    (tmp_path/'images').mkdir()
    for i, orientation in enumerate((1, 6, 8, 3)):
        exif = Image.Exif(); exif[0x0112] = orientation
        a = np.arange(12*20, dtype=np.uint8).reshape(12, 20) if i % 3 == 0 else np.arange(12*20, dtype=np.uint8).reshape(20, 12)
        Image.fromarray(a).save(tmp_path/'images'/f'{i}.png', exif=exif)   # all 12x20 in a viewer
    (tmp_path/'m.csv').write_text('ImageId,EncodedPixels\n' + ''.join(f'{i}.png,1 12\n{i},229 12\n{i},14 2\n' for i in range(4)))
    truth = torch.zeros(12, 20, dtype=torch.uint8); truth[:,0] = truth[:,19] = 1; truth[1:3,1] = 1
    for lazy in (False, True):
        dls = masks(tmp_path, bs=2, runs='m.csv', lazy=lazy)
        for dl in dls:
            for _, y in dl: assert all(torch.equal(plain(one)[0].byte(), truth) for one in y)

@pytest.mark.parametrize('change, error, said', [
    (lambda rows: rows[:-1], FileNotFoundError, '007.png has no partner in .*m.csv; 8 images, 7 masks, 1 without a partner'),
    (lambda rows: [*rows, 'x,1 1'], FileNotFoundError, "m.csv, row 10 .id 'x'. has no partner in .*images; 8 images, 9 masks, 1 without"),
    (lambda rows: [*rows[:-1], '007,399 3'], ValueError, "m.csv, row 9 .id '007'. must be sorted runs within 1 to 400 that do not overlap, got '399 3'"),
    (lambda rows: [*rows[:-1], '007,0 3'], ValueError, "row 9 .id '007'. must be sorted runs within 1 to 400"),
    (lambda rows: [*rows[:-1], '007,1 2 3'], ValueError, "row 9 .id '007'. must be pairs of whole numbers"),
    (lambda rows: [*rows[:-1], '007,nan'], ValueError, "row 9 .id '007'. must be pairs of whole numbers, got 'nan'"),
    (lambda rows: [*rows[:-1], '007'], ValueError, "m.csv, row 9 must have an id, and 2 fields as the header has, got .'007'."),
    (lambda rows: [*rows[:-1], ',1 2'], ValueError, 'm.csv, row 9 must have an id'),
    (lambda rows: rows[1:], ValueError, "got '000,'"), (lambda rows: rows[2:], ValueError, 'm.csv must begin with a header of two columns, ids and run lengths, or run_columns must name them'),
    (lambda rows: ['id,depth,rle', *rows[1:]], ValueError, "or run_columns must name them, got 'id,depth,rle'"),
    (lambda rows: [], ValueError, "must begin with a header"), (lambda rows: ['id,\u00b2'.encode('latin-1')], ValueError, 'must be text in UTF-8')])
def test_a_bad_table_is_named_by_its_row(tmp_path, change, error, said):
    as_table(write(tmp_path), tmp_path/'m.csv')
    rows = change((tmp_path/'m.csv').read_text().splitlines())
    (tmp_path/'m.csv').write_bytes(b'\n'.join(r if isinstance(r, bytes) else r.encode() for r in rows))
    for lazy in (False, True):
        with pytest.raises(error, match=said): masks(tmp_path, bs=2, runs='m.csv', lazy=lazy)

def test_what_a_table_lacks_is_left_out_where_that_is_asked_for(tmp_path):
    as_table(write(tmp_path), tmp_path/'m.csv')
    rows = (tmp_path/'m.csv').read_text().splitlines()
    (tmp_path/'m.csv').write_text('\n'.join([*rows[:3], *rows[4:], 'x,1 1']))
    with pytest.warns(UserWarning, match='8 images, 8 masks, 2 without a partner: left out'):
        pairs = mask_pairs(tmp_path, missing='skip', runs='m.csv')
    assert [x.stem for x, _ in pairs] == [f'{i:03}' for i in (0, 1, 3, 4, 5, 6, 7)]
    for x, y in pairs: assert isinstance(y, RunLengths) and y.image == x and y.decode((20, 20)).sum() == 20*int(x.stem)

@pytest.mark.parametrize('kw, error, said', [(dict(runs='no.csv'), FileNotFoundError, "runs must name a table in .* or above it, got 'no.csv'"),
    (dict(runs='m.csv', run_columns=['id', 'rle']), ValueError, "run_columns must name the column of ids and that of run lengths, of 'id', 'rle_mask' in .*m.csv, got .'id', 'rle'."),
    (dict(runs='m.csv', run_columns='id'), ValueError, 'run_columns must name'), (dict(runs='m.csv', run_columns=['id', 'rle_mask', 'x']), ValueError, 'run_columns must name'),
    (dict(runs='m.csv', codes=['a', 'b']), ValueError, 'classes must be None for run lengths, which draw one object, got 2'),
    (dict(runs='m.csv', run_order='F'), ValueError, "run_order must be one of 'column', 'row', got 'F'"), (dict(run_order='row'), ValueError, "must come with runs, got None and 'row'"),
    (dict(run_columns=['id', 'rle_mask']), ValueError, 'run_columns and run_order must come with runs')])
def test_what_a_table_cannot_be_is_refused(tmp_path, kw, error, said):
    write(tmp_path/'a'), as_table(write(tmp_path/'b'), tmp_path/'a'/'m.csv')
    with pytest.raises(error, match=said): masks(tmp_path/'a', bs=2, **kw)

def test_the_fields_of_a_table_may_be_long(tmp_path):
    (tmp_path/'t.csv').write_text('id,rle\na,' + '1 1 '*200_000 + '\n')
    assert len(read_runs(tmp_path/'t.csv')['a'][0][1]) == 800_000


# folders as one finds them

def photos(folder, n=8, name='{}_mask', lying=()):
    "JPEGs in colour of unequal sizes, three classes in palette masks; those of `lying` are stored on their side"
    for part in ('images', 'masks'): (folder/part).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        h, w = 40 + 4*i, 70 - 3*i
        classes = np.zeros((h, w), np.uint8); classes[8:32, 10:34] = 1; classes[14:26, 16:28] = 2
        x = np.uint8([(40, 120, 60), (200, 60, 40), (60, 60, 200)])[classes]
        exif = Image.Exif()
        if i in lying: exif[0x0112], x = 6, np.rot90(x).copy()
        Image.fromarray(x).save(folder/'images'/f'{i}.jpg', quality=95, exif=exif, subsampling=0)
        save_mask(torch.tensor(classes.astype(int)), folder/'masks'/f'{name.format(i)}.png')
    return folder

codes = ['ground', 'square', 'core']

@pytest.mark.parametrize('kw, shape', [(dict(resize=32), (32, 32)), (dict(resize=(24, 40)), (24, 40)), (dict(pad=72), (72, 72)), (dict(size=36), (36, 36))])
@pytest.mark.parametrize('lazy', (False, True))
def test_unequal_photographs_with_palette_masks(tmp_path, kw, shape, lazy):
    dls = masks(photos(tmp_path, lying=(2,)), bs=3, codes=codes, mask_name='{}_mask', lazy=lazy, **kw)
    x, y = dls.one_batch()
    assert x.shape == (3,3,*shape) and y.shape == (3,*shape) and y.dtype == torch.int64 and type(y) is ClassMask
    assert set(y.unique().tolist()) == {0, 1, 2} and dls.vocab == codes and dls.c == 3
    shown = plain(dls.valid.decode(dls.valid.one_batch())[0])      # the colours of each class are its own
    truth = plain(dls.valid.one_batch()[1])
    assert (shown[:,0][truth == 1].mean() > shown[:,2][truth == 1].mean() + .3) and (shown[:,2][truth == 2].mean() > shown[:,0][truth == 2].mean() + .3)

def test_lazy_loaders_give_the_same_batches_with_and_without_workers(tmp_path):
    photos(tmp_path)
    kw = dict(bs=2, codes=codes, mask_name='{}_mask', resize=32, normalize='set', seed=3)
    for more in (dict(lazy=True), dict(lazy=True, num_workers=1), dict(num_workers=3)):
        whole, other = masks(tmp_path, **kw), masks(tmp_path, **kw, **more)
        assert list(other.train.items) == list(whole.train.items)
        for dl, again in zip(other, whole):
            for (x, y), (a, b) in zip(dl, again): assert torch.equal(plain(x), plain(a)) and torch.equal(plain(y), plain(b))

def test_values_to_split_by_may_be_anything_that_can_be_gone_through():
    values = [.1, .5, .2, .9, .3, .7]
    assert stratified_split((v for v in values), .4) == stratified_split(values, .4) == stratified_split(dict.fromkeys(values).keys(), .4) == stratified_split(torch.tensor(values), .4)

@pytest.mark.parametrize('start', [m for m in ('fork', 'forkserver', 'spawn') if m in multiprocessing.get_all_start_methods()])
def test_processes_that_read_may_start_in_any_way(tmp_path, monkeypatch, start):
    "Python forks them on Linux before 3.14; elsewhere they get pickled copies"
    photos(tmp_path)
    kw = dict(bs=2, codes=codes, mask_name='{}_mask', resize=32, lazy=True)
    here, there = masks(tmp_path, **kw), masks(tmp_path, **kw, num_workers=1)
    monkeypatch.setattr(multiprocessing.context._default_context, '_actual_context', multiprocessing.get_context(start))
    for one, other in zip(here, there):
        for (x, y), (a, b) in zip(one, other, strict=True): assert torch.equal(plain(x), plain(a)) and torch.equal(plain(y), plain(b))

@pytest.mark.parametrize('loaders', [lambda cifar, photos: digits(), lambda cifar, photos: salt(20, bs=4, size=32), lambda cifar, photos: cifar10(cifar, bs=2),
                                     lambda cifar, photos: masks(photos, bs=2, codes=codes, mask_name='{}_mask', resize=32)],
                         ids=['digits', 'salt', 'cifar10', 'masks'])
def test_loaders_can_be_pickled(loaders, folder, tmp_path):
    dls = loaders(folder, photos(tmp_path/'photos'))
    for dl, other in zip(dls, pickle.loads(pickle.dumps(dls)), strict=True):
        for part, same in zip(dl.dataset[1], other.dataset[1], strict=True):
            assert type(part) is type(same) and torch.equal(plain(part), plain(same))
        assert all(torch.equal(plain(a), plain(b)) for a, b in zip(dl.columns, other.columns, strict=True))

def test_pixels_of_no_class_do_not_count_as_object(tmp_path):
    photos(tmp_path, name='{}')
    for f in (tmp_path/'masks').iterdir():
        y = np.array(Image.open(f)); y[:] = 255; Image.fromarray(y).save(f)
    with pytest.raises(ValueError, match='must hold classes 0 to 2, got'): masks(tmp_path, bs=2, codes=codes, resize=16)
    with pytest.raises(ValueError, match='ignore must come with classes'): masks(tmp_path, bs=2, ignore=255, resize=16)
    assert (masks(tmp_path, bs=2, codes=codes, ignore=255, resize=16).one_batch()[1] == 255).all()

@pytest.mark.parametrize('gone, said', [('images/2.jpg', '2_mask.png has no partner in .*images; 7 images, 8 masks, 1 without'), ('masks/5_mask.png', '5.jpg has no partner in .*masks; 8 images, 7 masks, 1 without')])
def test_partners_by_pattern_and_what_is_missing(tmp_path, gone, said):
    photos(tmp_path)
    assert [(x.stem, y.stem) for x, y in mask_pairs(tmp_path, '{}_mask')] == [(str(i), f'{i}_mask') for i in range(8)]
    (tmp_path/gone).unlink()
    with pytest.raises(FileNotFoundError, match=said): mask_pairs(tmp_path, '{}_mask')
    with pytest.warns(UserWarning, match=said + ' a partner: left out'): assert len(mask_pairs(tmp_path, '{}_mask', 'skip')) == 7
    with pytest.raises(FileNotFoundError, match='15 without a partner'): mask_pairs(tmp_path)
    with pytest.raises(ValueError, match="missing must be one of 'error', 'skip', got 'drop'"): mask_pairs(tmp_path, missing='drop')
    with pytest.raises(ValueError, match="mask_name must hold one {}, such as"): mask_pairs(tmp_path, '_mask')

def test_a_pair_of_two_sizes_is_refused_though_it_is_scaled(tmp_path):
    photos(tmp_path)
    save_mask(torch.zeros(9, 9).long(), tmp_path/'masks'/'4_mask.png')
    for lazy in (False, True):
        with pytest.raises(ValueError, match='4_mask.png is 9x9, its image .*4.jpg is 56x58'): masks(tmp_path, bs=2, codes=codes, mask_name='{}_mask', resize=32, lazy=lazy)

def test_unequal_sizes_need_a_way_to_one(tmp_path):
    with pytest.raises(ValueError, match='1.jpg is 44x67, .*0.jpg is 40x70; size= crops all to one size, resize= scales, pad= reflects'): masks(photos(tmp_path), bs=2, codes=codes, mask_name='{}_mask')
    with pytest.raises(ValueError, match='.jpg: pad must be at least the sides of every image, got 50'): masks(tmp_path, bs=2, codes=codes, mask_name='{}_mask', pad=50)

def test_the_set_is_scaled_channel_by_channel_without_a_copy_in_floats(tmp_path):
    x = torch.randint(0, 256, (9,3,7,5), generator=torch.Generator().manual_seed(0)).byte()
    norm = set_norm(level_counts(x))
    channels = (x/255).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.mean.flatten(), channels.mean(1)) and torch.allclose(norm.std.flatten(), channels.std(1))

def test_cifar_of_sixteen_bits_keeps_its_levels(folder):
    x = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    Image.fromarray(x).save(folder/'test'/'cat'/'00000.png')
    dls = cifar10(folder, bs=2)
    at = [f.parts[-2:] for f in dls.valid_ds.items].index(('cat', '00000.png'))
    assert np.array_equal(dls.valid.columns[0][at][1], np.rint(x/257)) and len(dls.valid.columns[0][at].unique()) == 256
    Image.fromarray(np.zeros((31, 32), np.uint8)).save(folder/'test'/'cat'/'00001.png')
    with pytest.raises(ValueError, match='cat.00001.png must be 32x32, got 31x32'): cifar10(folder, bs=2)


# tensors

def tiles(n=6, side=12): return torch.arange(n*side*side, dtype=torch.uint8).reshape(n,1,side,side)

def made(**kw):
    x = tiles()
    return mask_loaders(x, (x > 99).byte(), ([4,0,2], [1,5]), list('abcdef'), lambda i: x['abcdef'.index(i)], lambda i: (x['abcdef'.index(i)] > 99).byte(), **kw)

def test_tensors_come_back_in_their_parts():
    dls, x = made(bs=3), tiles()
    for dl, names, part in ((dls.train, 'eac', [4,0,2]), (dls.valid, 'bf', [1,5])):
        assert ''.join(dl.items) == names and torch.equal(plain(dl.columns[0]), x[part]) and torch.equal(plain(dl.columns[1]), (x[part] > 99).byte())
    by_fastai = dls.valid.new(cls=TfmdDL)
    for (a, b), (c, d) in zip(dls.valid, by_fastai): assert torch.equal(a, c) and torch.equal(b, d)

def test_the_set_is_scaled_by_its_training_part():
    x = tiles()[[4,0,2]].float()/255
    batch = made(bs=3, normalize='set').train.new(shuffle=False).one_batch()[0]
    assert torch.allclose(plain(batch), (x - x.mean())/x.std(), atol=1e-5)

@pytest.mark.parametrize('kw, said', [(dict(normalize='batch'), "normalize must be one of 'tile', 'set'"), (dict(bs=0), 'bs must'), (dict(bs=4), 'bs must be at most .* 3, got 4'),
                                      (dict(seed=-1), 'seed must'), (dict(cutout=-1), 'cutout must')])
def test_mask_loaders_refuse(kw, said):
    with pytest.raises(ValueError, match=said): made(**{**dict(bs=2), **kw})

def test_the_first_folder_that_is_there_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv('RESNOTES_DATA', raising=False)
    assert data_folder('a', 'b') is None
    monkeypatch.setenv('RESNOTES_DATA', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='a folder that holds a or b, got'): data_folder('a', 'b')
    for name in 'ba':
        (tmp_path/name).mkdir()
        assert data_folder('a', 'b') == tmp_path/name


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
