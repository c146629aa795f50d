"Synthetic sections, the batches that losses take, submissions, and what they refuse"
from types import MethodType

import numpy as np
import pytest
import torch
from fastai.distributed import DistributedDL
from fastai.learner import Learner

import fastai.callback.progress  # noqa: F401, gives the Learner its bar, and the means to hide it
from resnotes.data import coverage
from resnotes.losses import BCEMaskLoss, IoULoss, LovaszLoss, MixedLoss
from resnotes.metrics import iou, mask_metric
from resnotes.salt import (impedance, moved_ground, read_submission, ricker, rle_decode, rock_layers, salt, salt_body,
                           salt_section, salt_sections, seismic, write_submission)

def plain(x): return x.as_subclass(torch.Tensor)


# what a section is made of

@pytest.mark.parametrize('size, top, thick', [(60, 10, 20), (33, 0, 5), (20, 3, 10)])
def test_an_echo_below_salt_is_weakened_by_the_salt_above_it(size, top, thick):
    "By exp(-thickness/size); above the salt and in it nothing is lost"
    rng, rock = np.random.default_rng(0), np.random.default_rng(1).normal(size=(size, size))
    body = np.zeros((size, size), bool)
    body[top:top + thick, ::2] = True
    def echo(salt): return seismic(rng, rock, salt, period=.5, noise=0)   # a wavelet of one pixel
    share = echo(body)[1:]/echo(np.zeros_like(body))[1:]                  # row 0 has no echo
    expected = np.ones((size, size))
    expected[top + thick:, ::2] = np.exp(-thick/size)
    np.testing.assert_allclose(share, expected[1:])

def test_salt_in_two_layers_weakens_twice():
    rock, body = np.arange(12.)[:,None].repeat(12, 1), np.zeros((12, 12), bool)
    body[2:4] = body[6:9] = True
    heard = seismic(np.random.default_rng(0), rock, body, period=.5, noise=0)[:,0]
    lost = np.exp(-np.array([0, 0, 0, 0, 2, 2, 0, 0, 0, 5, 5, 5])/12)     # in salt the echo is whole
    np.testing.assert_allclose(heard[1:], lost[1:])

def test_the_wavelet_blurs_along_the_depth_alone():
    rock, nothing = np.zeros((41, 41)), np.zeros((41, 41), bool)
    rock[20:,7] = 1
    heard = seismic(np.random.default_rng(0), rock, nothing, period=8, noise=0)
    assert not np.delete(heard, 7, 1).any()
    np.testing.assert_allclose(heard[8:33,7], ricker(8), atol=1e-12)
    assert ricker(8).argmax() == 12 and ricker(8)[12] == 1 and np.allclose(ricker(8), ricker(8)[::-1])

def test_ground_that_has_not_moved_lies_flat():
    rock = rock_layers(np.random.default_rng(0), 50)
    boundaries, values = rock
    assert len(values) == len(boundaries) + 1 and np.diff(boundaries).min() >= 2 and boundaries[-1] > 50
    depth = np.arange(50.)[:,None].repeat(50, 1)
    assert np.ptp(impedance(depth, *rock), axis=1).max() == 0
    assert moved_ground(np.random.default_rng(1), 50).shape == (50, 50)

@pytest.mark.parametrize('share, pixels', [(0, 1), (.5, 128), (1, 255)])
def test_a_body_has_the_share_that_was_asked_for(share, pixels):
    for seed in range(5): assert salt_body(np.random.default_rng(seed), 16, share).sum() == pixels


# sections

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
    dls = salt(n=20, size=24, bs=4, normalize='set')
    x, = dls.test_dl([100, 101]).one_batch()
    assert torch.allclose(plain(dls.valid.decode((x,))[0])[0]*255, salt_section(100, 0, 24)[0].float(), atol=1e-3)

@pytest.mark.parametrize('kw, said', [(dict(n=0), 'n must'), (dict(size=8), 'size'), (dict(seed=-1), 'seed'), (dict(valid_pct=0.), 'valid_pct'),
                                      (dict(valid_pct=1.), 'valid_pct'), (dict(n=2, valid_pct=.1), 'valid_pct'), (dict(normalize='batch'), 'normalize must be one of'),
                                      (dict(cutout=-1), 'cutout'), (dict(bs=0), 'bs'), (dict(n=10, bs=32), 'bs must be at most')])
def test_salt_refuses(kw, said):
    with pytest.raises((ValueError, TypeError), match=said): salt(**{**dict(n=20, size=16, bs=4), **kw})

def test_columns_must_fit():
    with pytest.raises(ValueError, match='columns must have 4 items, got 3'): salt(n=20, size=16, bs=4).valid.fill(torch.zeros(3,1,16,16))


# batches, as the losses and metrics of the book take them

@pytest.mark.parametrize('kw', [dict(), dict(augment=True), dict(augment=True, cutout=6), dict(normalize='set'), dict(size=17), dict(bs=1)])
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

def test_an_epoch_of_random_changes_repeats_from_a_saved_state():
    dls = salt(n=40, size=16, bs=8, augment=True, cutout=4)
    def epoch():
        torch.manual_seed(7); dls.train.rng.seed(7)
        return [plain(x) for x, _ in dls.train]
    for a, b in zip(epoch(), epoch()): assert torch.equal(a, b)

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


# submissions

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

def test_submissions_count_along_the_rows_where_that_is_said(tmp_path):
    x = {'a': torch.tensor([[0, 1, 1], [0, 1, 0]])}
    file = write_submission(tmp_path/'s.csv', x, 'row')
    assert file.read_text() == 'id,rle_mask\na,2 2 5 1\n'
    assert torch.equal(read_submission(file, (2, 3), 'row')['a'], x['a'].byte()) and not torch.equal(read_submission(file, (2, 3))['a'], x['a'].byte())
    for call in (lambda: write_submission(file, x, 'F'), lambda: read_submission(file, (2, 3), 'F')):
        with pytest.raises(ValueError, match="order must be one of 'column', 'row', got 'F'"): call()

def test_a_mark_at_the_start_and_windows_line_ends_are_read(tmp_path):
    (tmp_path/'s.csv').write_bytes('\ufeffid,rle_mask\r\na,1 2\r\nb,\r\n'.encode())
    assert {k: int(v.sum()) for k, v in read_submission(tmp_path/'s.csv', (2,2)).items()} == {'a': 2, 'b': 0}

@pytest.mark.parametrize('content, said', [('', 'header'), ('a,b\n', 'header'), ('id,rle_mask\nx\n', 'row 2 must be'), ('id,rle_mask\nx,1 1,2\n', 'row 2 must be'),
                                           ('id,rle_mask\nx,\nx,1 1\n', 'row 3 repeats')])
def test_malformed_submissions_are_refused(tmp_path, content, said):
    (tmp_path/'s.csv').write_text(content)
    with pytest.raises(ValueError, match=said) as e: read_submission(tmp_path/'s.csv')
    assert 's.csv' in str(e.value)


# submissions from anywhere

@pytest.mark.parametrize('text, said', [('id,rle_mask\nFjällräven,1 1\n'.encode('latin-1'), 'must be text in UTF-8, row 2 or a later one is not|must be text in UTF-8, row 1'),
                                        ('id,rle_mask\na,1 1\n'.encode('utf-16'), 'must be text in UTF-8'),
                                        (b'id,rle_mask\na,1 ' + b'9'*5000 + b'\n', r"row 2 \(id 'a'\) must be within 1 to 16, got a number of 5000 digits"),
                                        (b'id,rle_mask\na,' + b'1 1 '*100_000 + b'\n', 'row 2: field larger than field limit'),
                                        (b'id,rle_mask\na,1 17\n', r"row 2 \(id 'a'\) must be sorted runs within 1 to 16"),
                                        (b'', 'must begin with the header id,rle_mask, got .nothing.')])
def test_a_malformed_submission_is_named_with_its_row(tmp_path, text, said):
    import csv
    file, before = tmp_path/'s.csv', csv.field_size_limit()
    file.write_bytes(text)
    with pytest.raises(ValueError, match=said) as e: read_submission(file, (4, 4))
    assert str(file) in str(e.value) and csv.field_size_limit() == before

def test_a_mask_with_more_text_than_csv_takes_by_default_comes_back(tmp_path):
    mask = (torch.arange(200)[:,None] + torch.arange(201)) % 2
    write_submission(tmp_path/'s.csv', {'a': mask})
    assert (tmp_path/'s.csv').stat().st_size > 2**17 and torch.equal(read_submission(tmp_path/'s.csv', (200, 201))['a'], mask.byte())

@pytest.mark.parametrize('shape', [(16,), 16, (4, 4, 1), '44'])
def test_a_shape_that_is_none_is_named(tmp_path, shape):
    write_submission(tmp_path/'s.csv', {'a': torch.eye(4)})
    for call in (lambda: rle_decode('1 1', shape), lambda: read_submission(tmp_path/'s.csv', shape)):
        with pytest.raises(ValueError, match='shape must be a height and a width, got'): call()

def test_a_submission_is_whole_or_not_there(tmp_path):
    import os
    write_submission(tmp_path/'s.csv', {'a': torch.eye(4)})
    before = (tmp_path/'s.csv').read_bytes()
    for masks in ({'b': torch.eye(4), os.fsdecode(b'caf\xe9'): torch.eye(4)}, {'b': torch.eye(4), 'c': torch.eye(4)*7}):
        with pytest.raises(ValueError): write_submission(tmp_path/'s.csv', masks)
    assert (tmp_path/'s.csv').read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['s.csv']

def test_ids_of_a_submission_are_text(tmp_path):
    with pytest.raises(ValueError, match='masks must have ids that are text, got 1'): write_submission(tmp_path/'s.csv', {1: torch.ones(2, 2)})
