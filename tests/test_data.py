"Edge cases of the loaders: splits, seeds, folders and what they refuse"
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import resnotes.data as data
from resnotes.data import cifar10, digits


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
