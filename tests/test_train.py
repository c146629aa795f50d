"Edge cases of the trainer: tower, runs, tables, what a terminal sees, and runs that are killed"
import hashlib, json, math, os, random, signal, subprocess, sys, zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.optimizer import Adam, OptimWrapper, SGD
from fastcore.basics import partial
from hypothesis import given, settings, strategies as st
from scipy import stats
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import resnotes.data as train_data
import resnotes.train as train
from resnotes.data import cifar10, digits
from resnotes.blocks import Residual, StrictBlock
from resnotes.losses import BCEMaskLoss, IoULoss, LovaszLoss, MixedLoss
from resnotes.metrics import iou
from resnotes.signal import measure
from resnotes.train import (Resume, ResidualTower, SignalRecorder, Watch, bars_visible, classifier, compare_inits, describe,
                            init_run, init_tower, predict_folder, predict_masks, segmenter, sgd, step_ratio, summarise, top_losses,
                            visible_progress)

def plain(x): return x.as_subclass(torch.Tensor)

small = dict(depth=2, channels=4)
images = [(torch.tensor(x/16 - .3).float()[None], y) for x, y in zip(load_digits().images[:400], load_digits().target)]


@pytest.fixture(scope='module')
def dls(): return digits(bs=256)


# the tower

@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 4), channels=st.integers(1, 5), kernel_size=st.integers(1, 8), stride=st.integers(1, 4),
       side=st.integers(1, 9), bs=st.integers(1, 3), bn=st.booleans())
def test_tower_keeps_shapes(depth, channels, kernel, stride, side, bs, bn):
    model = ResidualTower(depth, channels, kernel, in_channels=2, n_classes=3, stride=stride, batch_norm=bn).eval()
    x = torch.randn(bs, 2, side, side)
    assert model.stem(x).shape == (bs, channels, *2*[math.ceil(side/stride)])
    assert model.blocks(model.stem(x)).shape == model.stem(x).shape
    assert model(x).shape == (bs, 3)

@pytest.mark.parametrize('bn', [False, True])
def test_tower_is_blind_to_memory_layout(bn):
    model = init_tower(ResidualTower(3, in_channels=3, batch_norm=bn)).eval()
    x = torch.randn(2, 3, 8, 8)
    for view in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(model(view), model(x))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_tower_in_other_precisions(dtype):
    model, x = init_tower(ResidualTower(3)), torch.randn(2, 1, 8, 8)
    want = model(x)
    torch.testing.assert_close(model.to(dtype)(x.to(dtype)).float(), want, rtol=.1, atol=.1)

def test_blocks_add_to_what_enters():
    block = init_tower(ResidualTower(1, channels=4), 'he').blocks[0]
    x = torch.randn(8, 4, 3, 3)
    assert (block(x) >= x).all() and (block(x) > x).any()

@pytest.mark.parametrize('name', ['depth', 'channels', 'kernel', 'in_channels', 'n_classes', 'stride'])
@pytest.mark.parametrize('value', [0, -1, 1.5, True])
def test_tower_refuses(name, value):
    with pytest.raises((ValueError, TypeError), match=f'^{name} must'): ResidualTower(**{'depth': 1, name: value})

def test_inits_differ_by_one_factor_in_the_blocks_alone():
    he, scaled = (init_tower(ResidualTower(5), i, torch.Generator().manual_seed(0)) for i in ('he', 'depth_scaled'))
    for (name, a), b in zip(he.named_parameters(), scaled.parameters()):
        torch.testing.assert_close(a, b*math.sqrt(2*5) if name.startswith('blocks') else b)
        if name.endswith('bias'): assert not a.any()

def test_init_starts_batch_norm_as_the_identity():
    model = init_tower(ResidualTower(2, batch_norm=True))
    assert all((b.branch.norm1.weight == 1).all() for b in model.blocks)


# runs

def test_a_run_is_a_function_of_its_settings(dls):
    torch.manual_seed(0); a = init_run(dls, 'depth_scaled', seed=4, epochs=1, **small)
    torch.manual_seed(1); next(iter(dls.train)); b = init_run(dls, 'depth_scaled', seed=4, epochs=1, **small)
    c = init_run(dls, 'depth_scaled', seed=5, epochs=1, **small)
    assert a['step_loss'] == b['step_loss'] != c['step_loss'] and a['accuracy'] == b['accuracy']

def test_a_run_leaves_the_random_state_alone(dls):
    torch.manual_seed(0); want = torch.rand(1)
    torch.manual_seed(0); init_run(dls, 'he', epochs=1, **small)
    assert torch.rand(1) == want

def test_a_run_that_diverges_is_recorded_to_the_end(dls):
    run = init_run(dls, 'he', epochs=2, lr=1e30, **small)
    assert len(run['valid_loss']) == len(run['accuracy']) == 2 and len(run['step_loss']) == 2*len(dls.train)
    assert not math.isfinite(run['valid_loss'][-1]) and run['accuracy'][-1] < .2
    assert run['step_loss'][0] < 1e3  # recorded as it was, not averaged with what came later

@pytest.mark.parametrize('kw, said', [(dict(epochs=0), 'epochs'), (dict(lr=0.), 'lr'), (dict(lr=math.nan), 'lr'), (dict(seed=-1), 'seed'),
                                      (dict(init='xavier'), 'init'), (dict(depth=0), 'depth')])
def test_a_run_refuses(dls, kw, said):
    with pytest.raises(ValueError, match=f'^{said} must'): init_run(dls, **({'init': 'he', **small} | kw))

def test_compare_has_one_row_per_run(dls):
    runs = compare_inits(seeds=(1, 7), epochs=2, dls=dls, **small)
    assert set(zip(runs.init, runs.seed)) == {(i, s) for i in ('he', 'depth_scaled') for s in (1, 7)}
    assert (runs.final_accuracy == [a[-1] for a in runs.accuracy]).all()
    assert (runs.best_valid_loss == [min(v) for v in runs.valid_loss]).all()
    assert (runs.seconds > 0).all() and (runs.n_classes == 10).all() and (runs.depth == 2).all()

def test_compare_takes_one_name_and_one_seed(dls):
    assert len(compare_inits(seeds=3, inits='he', epochs=1, dls=dls, **small)) == 1

@pytest.mark.parametrize('kw, said', [(dict(seeds=()), 'seeds'), (dict(inits=()), 'inits'), (dict(inits=('he', 'zero')), 'zero'), (dict(depth=0), 'depth')])
def test_compare_refuses_before_it_trains(dls, kw, said):
    with pytest.raises(ValueError, match=said): compare_inits(**({'dls': dls, **small} | kw))


# tables

@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=9), level=st.floats(.5, .99))
def test_interval_is_students(values, level):
    runs = pd.DataFrame({'init': 'he', 'final_accuracy': values})
    mean, half = summarise(runs, level=level).loc['he', ['mean', 'half_width']]
    if np.std(values) > 1e-6:
        ci = stats.ttest_1samp(values, 0).confidence_interval(level)
        assert np.allclose([mean - half, mean + half], [ci.low, ci.high], atol=1e-6)

def test_summary_edges():
    runs = pd.DataFrame({'init': ['he'], 'final_accuracy': [.3]})
    assert math.isnan(summarise(runs).half_width['he'])
    with pytest.raises(ValueError, match='of must be one of'): summarise(runs, of='beauty')
    with pytest.raises(ValueError, match='level must'): summarise(runs, level=1.)

@pytest.mark.parametrize('acc, said', [([.1, .1, .1, .9, .9, .91], 'depth_scaled is better than he'), ([.9, .91, .9, .1, .1, .1], 'he is better than depth_scaled'),
                                       ([.1, .9, .5, .2, .8, .5], 'no difference is shown')])
def test_the_sentence_follows_the_numbers(acc, said):
    runs = pd.DataFrame(dict(init=['he']*3 + ['depth_scaled']*3, final_accuracy=acc, best_valid_loss=1., depth=60, epochs=4, n_classes=10))
    assert said in describe(runs)
    assert 'One seed has no interval' in describe(runs.iloc[[0, 3]])

def test_step_ratio_sees_the_deeper_one():
    x, y = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    assert step_ratio(ResidualTower(24), ResidualTower(1), x, y, pairs=3) > 1 > step_ratio(ResidualTower(1), ResidualTower(24), x, y, pairs=3)
    with pytest.raises(ValueError, match='pairs'): step_ratio(ResidualTower(1), ResidualTower(1), x, y, pairs=0)


@pytest.mark.skipif('RESNOTES_DATA' not in os.environ, reason='RESNOTES_DATA names no folder')
def test_cifar_trains_at_tiny_size():
    run = init_run(cifar10(small=True, n=100, bs=20), 'depth_scaled', epochs=1, depth=2, kernel_size=8, stride=4)
    assert run['in_channels'] == 3 and len(run['step_loss']) == 5 and math.isfinite(run['valid_loss'][0])


# what is seen

def test_progress_bar_only_where_it_is_seen(dls, monkeypatch, capsys):
    learn = train.Learner(dls, ResidualTower(1), loss_func=train.CrossEntropyLossFlat())
    assert not bars_visible()
    with visible_progress(learn): learn.fit(1)
    assert capsys.readouterr().out == ''
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert bars_visible()
    with visible_progress(learn): learn.fit(1)
    assert 'train_loss' in capsys.readouterr().out

def test_report_into_a_pipe_is_plain_and_imports_no_torchvision():
    code = ("import sys; from resnotes.train import digits_report; "
            "digits_report(depth=2, epochs=1, seeds=(0,1), channels=4); assert 'torchvision' not in sys.modules")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert '\r' not in out.stdout + out.stderr and not out.stderr
    assert 'depth_scaled' in out.stdout and 'interval' in out.stdout


# sgd, classifier, segmenter

class Odd(nn.Module):
    "A norm that fastai does not know, a single gain, and what all know"
    def __init__(self, out=10):
        super().__init__()
        self.conv, self.norm, self.gain = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Parameter(torch.ones(1))
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(4, out)
    def forward(self, x): return self.head(self.bn(self.gain*self.norm(self.conv(x))).mean((2, 3)))

@settings(max_examples=20, deadline=None)
@given(lr=st.floats(1e-3, 1), momentum=st.sampled_from([0., .5, .9]), wd=st.sampled_from([0., 1e-4, .1]))
def test_sgd_is_torchs_with_two_groups(lr, momentum, wd):
    torch.manual_seed(0); ours = Odd().double()
    torch.manual_seed(0); theirs = Odd().double()
    groups = [dict(params=[p for p in theirs.parameters() if (p.ndim > 1) == decay], weight_decay=wd*decay) for decay in (True, False)]
    a, b = sgd(ours.parameters(), lr, momentum, wd), torch.optim.SGD(groups, lr=lr, momentum=momentum)
    x, y = torch.randn(8, 1, 6, 6, dtype=torch.double), torch.arange(8)
    for _ in range(4):
        for net, opt in ((ours, a), (theirs, b)):
            nn.functional.cross_entropy(net(x), y).backward()
            opt.step(), opt.zero_grad()
    for p, q in zip(ours.parameters(), theirs.parameters()): torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)

def test_decay_reaches_weights_and_nothing_else_through_a_learner(dls):
    model = Odd()
    learn = classifier(dls, model, lr=.5, wd=.1, momentum=0.)
    learn.create_opt()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    learn.opt.step()
    for n, p in model.named_parameters(): torch.testing.assert_close(p.detach(), before[n]*(.95 if n in ('conv.weight', 'head.weight') else 1.))

def test_settings_of_a_learner_reach_its_optimiser(dls):
    learn = classifier(dls, Odd(), lr=.03, wd=.01, momentum=.8)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert {k: v for k, v in learn.opt.hypers[0].items()} == dict(lr=.03, wd=.01, mom=.8)
        learn.fit_one_cycle(1)
    assert set(map(float, learn.recorder.hps['mom'])) == {.8} and .025 < max(learn.recorder.hps['lr']) <= .03
    adam = classifier(dls, Odd(), opt_func=Adam)
    adam.create_opt()
    assert 'sqr_mom' in adam.opt.hypers[0]

@pytest.mark.parametrize('kw, said', [(dict(lr=0.), 'lr must be greater than 0, got 0.0'), (dict(lr=-1.), 'lr must'), (dict(lr=math.nan), 'lr must'), (dict(lr=math.inf), 'lr must'),
                                      (dict(wd=-1e-4), 'wd must'), (dict(momentum=1.), 'momentum must'), (dict(momentum=-.1), 'momentum must'),
                                      (dict(lr='fast'), 'lr must be a real number'), (dict(model='resnet20'), 'model must be an nn.Module, got str')])
@pytest.mark.parametrize('make', ['classifier', 'segmenter'])
def test_learners_refuse(dls, tiles, make, kw, said):
    data, model = (dls, Odd()) if make == 'classifier' else (tiles, MaskNet())
    with pytest.raises((ValueError, TypeError), match=said): getattr(train, make)(**{'dls': data, 'model': model} | kw)

def test_classes_and_masks_are_not_mixed_up(dls, tiles):
    with pytest.raises(ValueError, match='dls must give an image and its mask, got a target of shape'): segmenter(dls, MaskNet())
    with pytest.raises(ValueError, match=r'dls must give an image and its class, got a target of shape \[1, 32, 32\]'): classifier(tiles, Odd())
    plain = DataLoaders(DataLoader(images[:64], bs=32), DataLoader(images[64:96], bs=32))
    with pytest.raises(ValueError, match='dls must know its number of classes'): classifier(plain, Odd())
    with pytest.raises(ValueError, match='dls must give an image and its mask'): segmenter(plain, MaskNet())

@pytest.mark.parametrize('model, said', [(Odd(9), r'logits of shape \[256, 10\], got \[256, 9\]'), (nn.Sequential(Odd(), nn.Unflatten(1, (10, 1))), r'got \[256, 10, 1\]')])
def test_wrong_class_logits_are_named(dls, model, said):
    learn = classifier(dls, model)
    with pytest.raises(ValueError, match=said), learn.no_bar(), learn.no_logging(): learn.fit(1)

@pytest.mark.parametrize('model, said', [(nn.Conv2d(1, 2, 1), r'logits of shape \[8, 1, 32, 32\], got \[8, 2, 32, 32\]'), (nn.Conv2d(1, 1, 2), r'got \[8, 1, 31, 31\]'),
                                         (nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1)), r'got \[8, 1, 1, 1\]')])
def test_wrong_mask_logits_are_named(tiles, model, said):
    learn = segmenter(tiles, model, loss=BCEMaskLoss(), metrics=[])
    with pytest.raises(ValueError, match=said), learn.no_bar(), learn.no_logging(): learn.fit(1)

class MaskNet(nn.Module):
    "One number per pixel, with a batch norm that must be evaluated with running statistics"
    def __init__(self, drop_channel=False):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        self.drop_channel = drop_channel
    def forward(self, x): return self.net(x)[:,0] if self.drop_channel else self.net(x)

@pytest.fixture(scope='module')
def tiles(): return train_data.salt(n=40, bs=8, size=32)

@pytest.fixture(scope='module')
def masker(tiles):
    torch.manual_seed(0)
    learn = segmenter(tiles, MaskNet())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .1)
    learn.last = list(learn.recorder.values[-1])
    return learn

@pytest.mark.parametrize('loss', [None, IoULoss(), LovaszLoss(), BCEMaskLoss(), MixedLoss((IoULoss(over='batch'), .5), (BCEMaskLoss(), 1.))])
@pytest.mark.parametrize('drop_channel', [False, True])
def test_segmenter_trains_and_scores_with_any_mask_loss(tiles, loss, drop_channel):
    learn = segmenter(tiles, MaskNet(drop_channel), loss=loss)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)
    assert learn.recorder.metric_names[1:-1] == ['train_loss', 'valid_loss', 'iou', 'iou_all', 'tgs_score']
    assert all(math.isfinite(v) for v in learn.recorder.values[-1])

@pytest.mark.parametrize('loss, name', [(nn.BCEWithLogitsLoss(), 'BCEWithLogitsLoss'), (nn.functional.binary_cross_entropy_with_logits, 'binary_cross')])
def test_a_loss_that_cannot_decide_is_refused(tiles, loss, name):
    with pytest.raises(TypeError, match=f'loss must have `activation` and `decodes`, .*{name}'): segmenter(tiles, MaskNet(), loss=loss)

def test_fastais_own_loss_for_logits_will_do(tiles):
    learn = segmenter(tiles, MaskNet(), loss=BCEWithLogitsLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    with learn.no_bar(): probs, _, decided = learn.get_preds(with_decoded=True)
    assert torch.equal(decided, probs > .5) and torch.equal(predict_masks(learn, [plain(tiles.valid_ds[0][0])])[0], plain(decided)[0,0])

def test_scores_are_those_of_the_predictions(masker):
    with masker.no_bar(): probs, truth, decided = masker.get_preds(with_decoded=True)
    assert decided.dtype == torch.bool and 0 <= probs.min() and probs.max() <= 1
    assert [iou(decided, truth).item(), iou(decided, truth, over='batch').item()] == pytest.approx(masker.last[2:4])

def test_predict_takes_one_image(masker, tiles):
    item = tiles.valid_ds.items[3]
    with masker.no_bar():
        decided, raw, probs = masker.predict(item)
        all_probs = masker.get_preds()[0]
    torch.testing.assert_close(probs.as_subclass(torch.Tensor), all_probs[3].as_subclass(torch.Tensor), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.as_tensor(raw).as_subclass(torch.Tensor).bool(), probs.as_subclass(torch.Tensor) > .5)

def test_results_are_drawn(masker, dls):
    import matplotlib.pyplot as plt
    plt.close('all')
    with masker.no_bar(): masker.show_results(max_n=3, shuffle=False)
    axes = plt.gcf().axes
    assert [a.get_title() for a in axes] == ['truth', 'network']*3 and all(len(a.images) == 2 for a in axes)
    plt.close('all')
    learn = classifier(dls, Odd())
    with learn.no_bar(): learn.show_results(max_n=4, shuffle=False)
    truths = [str(int(y)) for _, y in [dls.valid_ds[i] for i in range(4)]]
    titles = [a.get_title() for a in plt.gcf().axes]
    assert len(titles) == 4 and all(t == y or t.endswith(f', not {y}') for t, y in zip(titles, truths))
    plt.close('all')


# the worst, and masks for a folder

def test_top_losses_ranks_images_one_by_one(masker, tiles, dls):
    x, y = (t.as_subclass(torch.Tensor) for t in tiles.valid.new(bs=8, shuffle=False).one_batch())
    with torch.no_grad(): losses = IoULoss(reduction='none')(masker.model.eval()(x), y)
    worst = top_losses(masker, k=100)
    assert worst.loss.is_monotonic_decreasing and len(worst) == 8
    assert worst.loss.sort_index().tolist() == pytest.approx(losses.tolist(), rel=1e-5)
    assert (masker.loss_func.over, masker.loss_func.reduction) == ('batch', 'mean') and masker.recorder is not None
    assert worst.item.tolist() == [tiles.valid_ds.items[i] for i in worst.index]
    learn = classifier(dls, Odd())
    part = top_losses(learn, k=5, part=0)
    x, y = (torch.stack([torch.as_tensor(o[i]) for o in [dls.train_ds[j] for j in part.index]]) for i in (0, 1))
    with torch.no_grad(): again = nn.functional.cross_entropy(learn.model.eval()(dls.valid.after_batch((x.as_subclass(train.TensorImageBW),))[0].as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor).long(), reduction='none')
    assert part.loss.tolist() == pytest.approx(again.tolist(), rel=1e-4)
    with pytest.raises(ValueError, match='k must'): top_losses(learn, k=0)
    with pytest.raises(ValueError, match='part must be one of 0, 1, got 2'): top_losses(learn, part=2)

def test_top_losses_leaves_the_history(dls):
    learn = classifier(dls, Odd())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    values = list(learn.recorder.values)
    top_losses(learn)
    assert list(learn.recorder.values) == values

def test_masks_do_not_depend_on_the_company(masker):
    pictures = [train_data.salt_sections(1, seed=i, size=side)[0][0] for i, side in enumerate((32, 48, 32, 17, 48, 32))]
    pictures[3] = pictures[3][:,:,:13] if pictures[3].shape[-1] > 13 else pictures[3]
    got = predict_masks(masker, pictures)
    assert [m.shape for m in got] == [p.shape[1:] for p in pictures] and all(m.dtype == torch.bool for m in got)
    for one, p in zip(got, pictures): assert torch.equal(predict_masks(masker, [p])[0], one)
    masker.model.train()
    assert torch.equal(predict_masks(masker, pictures[:1])[0], got[0])

def test_a_folder_becomes_masks_or_run_lengths(masker, tmp_path):
    (tmp_path/'in').mkdir()
    pictures = train_data.salt_sections(3, seed=4, size=40)[0]
    for i, p in enumerate(pictures): Image.fromarray(p[0].numpy()).save(tmp_path/'in'/f'b{i}.png')
    found = predict_folder(masker, tmp_path/'in')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in'] and list(found) == ['b0', 'b1', 'b2']
    predict_folder(masker, tmp_path/'in', tmp_path/'out'), predict_folder(masker, tmp_path/'in', tmp_path/'s.csv')
    back = train_data.read_submission(tmp_path/'s.csv', (40, 40))
    for name, m in found.items():
        assert torch.equal(train_data.read_mask(tmp_path/'out'/f'{name}.png')[0].bool(), m) and torch.equal(back[name].bool(), m)

def test_names_and_endings_survive_the_way_to_a_submission(masker, tmp_path):
    (tmp_path/'in').mkdir()
    names = ['Fjällräven.PNG', '岩塩.tif', 'a b.c.png', 'comma,.bmp']
    for name, p in zip(names, train_data.salt_sections(4, seed=4, size=40)[0]): Image.fromarray(p[0].numpy()).save(tmp_path/'in'/name)
    found = predict_folder(masker, tmp_path/'in', tmp_path/'S.CSV')
    back = train_data.read_submission(tmp_path/'S.CSV', (40, 40))
    assert set(found) == set(back) == {n.rpartition('.')[0] for n in names} and all(torch.equal(back[n].bool(), found[n]) for n in found)
    predict_folder(masker, tmp_path/'in', tmp_path/'out')
    assert {f.stem for f in (tmp_path/'out').iterdir()} == set(found)

def test_predictions_replace_no_image(masker, tmp_path):
    Image.fromarray(train_data.salt_sections(1, size=40)[0][0,0].numpy()).save(tmp_path/'a.png')
    before = (tmp_path/'a.png').read_bytes()
    with pytest.raises(ValueError, match='dest must be another folder'): predict_folder(masker, tmp_path, f'{tmp_path}/../{tmp_path.name}')
    assert (tmp_path/'a.png').read_bytes() == before
    Image.open(tmp_path/'a.png').save(tmp_path/'a.bmp')
    with pytest.raises(ValueError, match='a.bmp has a twin of the same name, a.png'): predict_folder(masker, tmp_path)

@pytest.mark.parametrize('image', [torch.rand(1, 32, 32), torch.zeros(32, 32, dtype=torch.uint8), torch.zeros(3, 32, 32, dtype=torch.uint8)])
def test_images_to_predict_are_bytes_of_one_channel(masker, image):
    with pytest.raises(ValueError, match=r'images must be uint8 tensors \[1, height, width\], got'): predict_masks(masker, [image])

def test_a_folder_without_images_is_named(masker, tmp_path):
    with pytest.raises(FileNotFoundError, match='found none in .*nowhere'): predict_folder(masker, tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='found none in'): predict_folder(masker, tmp_path)
    (tmp_path/'x.png').write_bytes(b'not a picture')
    with pytest.raises(ValueError, match='x.png'): predict_folder(masker, tmp_path)


# recording and watching

def small_net(): return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), StrictBlock(4), StrictBlock(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def quick(model, *cbs, epochs=2, **kw):
    torch.manual_seed(0), random.seed(0)
    dls = DataLoaders(*(DataLoader(images[part], bs=64, shuffle=shuffle) for part, shuffle in ((slice(300), True), (slice(300, 400), False))))
    dls.c = 10
    learn = classifier(dls, model, .05, cbs=cbs, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn

def test_recording_changes_nothing_and_leaves_no_hook():
    nets = []
    for cbs in ((), (SignalRecorder(every=1), Watch())):
        torch.manual_seed(1); nets.append(small_net()); quick(nets[-1], *cbs)
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values()): assert torch.equal(a, b)
    assert not any(m._forward_hooks for m in nets[1].modules())

def test_recorder_sees_what_measure_sees():
    torch.manual_seed(1); model = small_net()
    fresh = [p.detach().clone() for p in model.state_dict().values()]
    class FirstBatch(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 0: self.learn.first = self.x.clone(), self.y.clone()
    learn = quick(model, SignalRecorder(every=3), FirstBatch, epochs=1)
    for p, old in zip(model.state_dict().values(), fresh): p.copy_(old)
    x, y = learn.first
    rows = measure(model.train(), x, layers=Residual, loss=lambda out: nn.functional.cross_entropy(out, y))
    r = learn.signal_recorder
    assert r.steps == [0, 3] and r.names == ['1', '2']
    assert r.signals[0] == pytest.approx([o.forward for o in rows], rel=1e-5)
    assert r.gradients[0] == pytest.approx([o.gradient for o in rows], rel=1e-4)
    with torch.no_grad():
        z = model[0](x)
        gains = []
        for block in (model[1], model[2]):
            out = block(z)
            gains.append(((out - z).transpose(0, 1).flatten(1).var(1, correction=0).mean()/z.transpose(0, 1).flatten(1).var(1, correction=0).mean()).sqrt().item())
            z = out
    assert r.gains[0] == pytest.approx(gains, rel=1e-4)
    assert sum(r.shares(0)) == pytest.approx(1) and len(r.shares()) == 3

def test_what_the_recorder_kept_is_plain_and_comes_back(tmp_path):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.spare = small_net(), StrictBlock(4)
        def forward(self, x): return self.net(x)
    whole = quick(Unused(), SignalRecorder(every=2), Watch(), epochs=2)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt): quick(Unused(), SignalRecorder(every=2), Watch(), Resume(tmp_path), Cut(1, 3))
    again = quick(Unused(), SignalRecorder(every=2), Watch(), Resume(tmp_path), epochs=2)
    record = json.loads(json.dumps(again.signal_recorder.record(), allow_nan=False))
    assert record['steps'] == [0, 2, 4, 6, 8] and record['gains'][0][2] is None and record['blocks'] == ['net.1', 'net.2', 'spare']
    assert len(whole.signal_recorder.shares()) == 3
    assert again.signal_recorder.steps == whole.signal_recorder.steps and json.dumps(again.watch.record())

def test_a_recorder_needs_something_to_record():
    with pytest.raises(ValueError, match='layers must be what the model holds'): quick(Odd(), SignalRecorder())
    with pytest.raises(ValueError, match='every must'): SignalRecorder(every=0)

def test_validation_keeps_what_was_recorded():
    learn = quick(small_net(), SignalRecorder(every=2), Watch())
    steps, messages = list(learn.signal_recorder.steps), learn.watch.messages
    with learn.no_bar(): learn.validate(), learn.get_preds()
    assert learn.signal_recorder.steps == steps == [0, 2, 4, 6, 8] and learn.watch.messages is messages

class Poison(Callback):
    "Multiplies the loss of one step"
    order = -1
    def __init__(self, step, factor): self.step, self.factor = step, factor
    def after_loss(self):
        if self.training and self.train_iter == self.step: self.learn.loss = self.learn.loss*self.factor

@pytest.mark.parametrize('factor, said', [(math.nan, 'the loss is nan, no finite number'), (math.inf, 'the loss is inf'), (1e6, 'more than 1000 times the first')])
def test_a_broken_loss_ends_the_fit_before_the_step(factor, said):
    class Weights(Callback):
        def before_batch(self): self.learn.kept = self.model[0].weight.detach().clone()
    learn = quick(small_net(), Poison(6, factor), Watch(), Weights)
    message, = learn.watch.messages
    assert message.startswith('step 7: ') and said in message and message.endswith('the fit ends before this step')
    assert torch.equal(learn.model[0].weight, learn.kept) and len(learn.recorder.losses) == 6

def test_a_healthy_run_is_left_alone():
    assert quick(small_net(), Watch(), epochs=2).watch.messages == []
    assert len(quick(small_net(), Poison(3, 900.), Watch()).recorder.values) == 2   # a jump below the limit

class Scripted(Callback):
    "Writes validation losses into the recorder"
    order = 52
    def __init__(self, *losses): self.losses = losses
    def after_epoch(self): self.recorder.values[-1][1] = self.losses[self.epoch]

@pytest.mark.parametrize('losses, epochs', [((2., 1.9, 1.8, 1.7, 1.6), []), ((2., 1.999, 1.998, 1., .9), [3]), ((2., 1., 1., 1., 1.), [4]), ((2.4, 2.31, 2.30, 2.2, 2.2), [2]),
                                            ((math.nan,)*5, [2]), ((1., math.nan, 1.1, .5, .4), [3])])
def test_plateaus_are_told_once_and_the_run_goes_on(losses, epochs):
    learn = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Scripted(*losses), Watch(patience=2), epochs=5)
    assert [int(m.split(':')[0].split()[1]) for m in learn.watch.messages] == epochs and len(learn.recorder.values) == 5
    assert all('plateau' in m for m in learn.watch.messages)

def test_messages_are_printed_where_the_table_is(capsys):
    learn = quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Poison(1, math.nan), Watch())
    assert capsys.readouterr().out == ''
    with learn.no_bar(): learn.fit(1)
    assert 'step 2: the loss is nan' in capsys.readouterr().out

two = """
import sys
sys.path.insert(0, sys.argv[1])
from test_train import *
from fastai.torch_core import rank_distrib
torch.distributed.init_process_group('gloo')
learn = quick(small_net(), *[Poison(6, math.nan)]*(rank_distrib() == 1), Watch(), Together)
with open(f'{sys.argv[2]}/{rank_distrib()}', 'w') as f: print(len(learn.recorder.losses), *learn.watch.messages, file=f)
torch.distributed.destroy_process_group()
"""

class Together(Callback):
    "Waits for the other process at each step, as gradients do that are averaged"
    order = 60
    def after_loss(self):
        if self.training: torch.distributed.barrier()

def test_processes_end_together(tmp_path):
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '--no-python', sys.executable, '-c', two, os.path.dirname(__file__), str(tmp_path)]
    done = subprocess.run(run, env=os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [(tmp_path/rank).read_text() for rank in '01']
    assert said[0] == said[1] and said[0].startswith('6 step 7: the loss is nan'), said

@pytest.mark.parametrize('kw', [dict(patience=0), dict(better=1.), dict(explode=.5), dict(explode=math.nan)])
def test_watch_refuses(kw):
    with pytest.raises(ValueError, match=f'^{next(iter(kw))} must'): Watch(**kw)


# killed and resumed

class Noisy(nn.Module):
    "Draws from torch's generator in training: dropout on the image (as augmentation would) and before the head"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(.2), ResidualTower(**small, batch_norm=True), nn.Dropout(.5), nn.Linear(10, 10))
    def forward(self, x): return self.net(x)

class AllGenerators(Callback):
    "Draws from Python's and numpy's generators in every step, and adds what it draws to the image"
    def before_batch(self):
        if self.training: self.learn.xb = (self.x + random.random() + np.random.rand() + torch.rand(()),)

class Cut(Callback):
    "Ends a run in the middle of an epoch, in training or in validation, or in the middle of writing"
    def __init__(self, epoch, batch, training=True): self.when = epoch, batch, training
    def after_batch(self):
        if (self.epoch, self.iter, self.training) == self.when: raise KeyboardInterrupt

class Memory(Callback):
    "Remembers what it saw"
    def __init__(self): self.seen = []
    def after_epoch(self): self.seen.append(float(self.recorder.losses[-1]))
    def state_dict(self): return {'seen': self.seen}
    def load_state_dict(self, state): self.seen = state['seen']

def noisy_learner(seed, *cbs, opt=SGD, **kw):
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    dls = DataLoaders(*(DataLoader(images[part], bs=64, shuffle=shuffle) for part, shuffle in ((slice(300), True), (slice(300, 400), False))))
    return Learner(dls, Noisy(), loss_func=train.CrossEntropyLossFlat(), metrics=train.accuracy, opt_func=opt, cbs=[AllGenerators, *cbs], **kw)

def end(learn):
    "All that a run leaves behind"
    r = learn.recorder
    return dict(model={k: v.tolist() for k, v in learn.model.state_dict().items()}, values=[list(v) for v in r.values], iters=list(r.iters),
                losses=[float(l) for l in r.losses], lrs=[float(l) for l in r.lrs], final=list(learn.final_record),
                hps={k: list(map(float, v)) for k, v in getattr(r, 'hps', {}).items()}, train_iter=learn.train_iter,
                momenta=[{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in s.items()} for _, _, s, _ in learn.opt.all_params()] if isinstance(learn.opt, train.Optimizer) else None,
                draws=(random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()))

def fit(learn, how, n=3):
    "Fit, and say at once what that leaves behind"
    with learn.no_bar(), learn.no_logging(): getattr(learn, how)(n, .05)
    return end(learn)

@pytest.mark.parametrize('how', ['fit', 'fit_one_cycle'])
@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), Adam, partial(OptimWrapper, opt=torch.optim.SGD)])
@pytest.mark.parametrize('cut', [(0, 1, True), (1, 3, True), (2, 0, False)])
def test_a_resumed_run_equals_one_left_alone(tmp_path, how, opt, cut):
    left = noisy_learner(0, Memory, opt=opt)
    want = fit(left, how)
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Memory, Resume(tmp_path), Cut(*cut), opt=opt), how)
    again = noisy_learner(0, Memory, Resume(tmp_path), opt=opt)
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    with torch.no_grad(): [p.zero_() for p in again.model.parameters()]
    assert fit(again, how) == want
    assert again.resume.done == cut[0] and again.memory.seen == left.memory.seen

def test_a_checkpointed_run_equals_one_without(tmp_path):
    assert fit(noisy_learner(0), 'fit') == fit(noisy_learner(0, Resume(tmp_path)), 'fit')

def test_a_run_may_be_cut_many_times_and_done_runs_train_no_more(tmp_path):
    want = fit(noisy_learner(0), 'fit_one_cycle')
    for cut in ((0, 0), (0, 2), (1, 0), (1, 4), (2, 4)):
        with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Resume(tmp_path), Cut(*cut)), 'fit_one_cycle')
    assert fit(noisy_learner(0, Resume(tmp_path)), 'fit_one_cycle') == want
    done = noisy_learner(0, Resume(tmp_path), Cut(2, 0))
    assert fit(done, 'fit_one_cycle') == want
    done.resume.remove(), done.resume.remove()
    assert not list(tmp_path.iterdir())

def test_the_same_learner_goes_on_after_an_interrupt(tmp_path):
    want = fit(noisy_learner(0), 'fit_one_cycle')
    learn = noisy_learner(0, Resume(tmp_path), Cut(1, 2))
    with pytest.raises(KeyboardInterrupt): fit(learn, 'fit_one_cycle')
    learn.remove_cb(Cut)
    assert fit(learn, 'fit_one_cycle') == want
    with pytest.raises(ValueError, match='folder must serve one fit'): fit(learn, 'fit_one_cycle')

def test_validation_and_prediction_leave_the_checkpoint_alone(tmp_path):
    learn = noisy_learner(0, Resume(tmp_path))
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        assert not learn.resume.file.exists()
        learn.fit(1, .05)
        stamp, want = learn.resume.file.stat().st_mtime_ns, learn.model.net[3].weight.clone()
        learn.validate(), learn.get_preds()
    assert learn.resume.file.stat().st_mtime_ns == stamp and torch.equal(learn.model.net[3].weight, want)

def test_trackers_remember_their_best(tmp_path):
    stop = lambda: EarlyStoppingCallback(monitor='valid_loss', min_delta=10., patience=2)   # never better by 10: stops after epochs 1, 2
    a = noisy_learner(0, stop()); fit(a, 'fit', 5)
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, stop(), Resume(tmp_path), Cut(2, 1)), 'fit', 5)
    b = noisy_learner(1, stop(), Resume(tmp_path)); fit(b, 'fit', 5)
    assert len(a.recorder.values) == len(b.recorder.values) == 3 and a.early_stopping.best == b.early_stopping.best

@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'text'])
def test_a_damaged_checkpoint_is_ignored_aloud(tmp_path, damage):
    want = fit(noisy_learner(0), 'fit')
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Resume(tmp_path), Cut(2, 1)), 'fit')
    file = tmp_path/'resume.pt'
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as z: at = max(z.infolist(), key=lambda i: i.file_size)
    if damage == 'flip': data[at.header_offset + 200 + at.file_size//2] ^= 1
    file.write_bytes({'cut': data[:len(data)//2], 'flip': data, 'empty': b'', 'text': b'no checkpoint'}[damage])
    again = noisy_learner(0, Resume(tmp_path))
    with pytest.warns(UserWarning, match='resume.pt is damaged and is ignored'): assert fit(again, 'fit') == want

def test_augmentation_is_resumed(tmp_path):
    def run(*cbs, seed=0):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        dls = train_data.salt(n=30, bs=8, size=16, augment=True, cutout=4)
        learn = segmenter(dls, MaskNet(), cbs=cbs)
        return fit(learn, 'fit_one_cycle')
    want = run()
    with pytest.raises(KeyboardInterrupt): run(Resume(tmp_path), Cut(1, 1))
    assert run(Resume(tmp_path), seed=5) == want

class Half(MixedPrecision):
    "As on a GPU, with a scale that is too large at first and grows after four good steps"
    def before_fit(self):
        self.autocast, self.scales = torch.autocast('cpu', torch.float16), train.L()
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**26, growth_interval=4)

class NotedScales(Memory):
    "Remembers the scale at each step"
    def after_batch(self):
        if self.training: self.seen.append(self.learn.scaler.get_scale())
    def after_epoch(self): pass

def test_half_precision_is_resumed_with_its_scale(tmp_path):
    left = noisy_learner(0, Half, NotedScales)
    want = fit(left, 'fit')
    scales = left.noted_scales.seen
    assert (np.diff(scales) < 0).any() and (np.diff(scales) > 0).any()   # steps were left out, and the scale grew again
    with pytest.raises(KeyboardInterrupt): fit(noisy_learner(0, Half, NotedScales, Resume(tmp_path), Cut(2, 1)), 'fit')
    again = noisy_learner(1, Half, NotedScales, Resume(tmp_path))
    assert fit(again, 'fit') == want and again.noted_scales.seen == scales
    with pytest.raises(ValueError, match="callbacks was .*'half'"): fit(noisy_learner(0, NotedScales, Resume(tmp_path)), 'fit')

def test_bfloat16_has_no_scale_to_keep(tmp_path):
    with pytest.warns(UserWarning, match='autocast'): fit(noisy_learner(0, MixedPrecision('bf16'), Resume(tmp_path)), 'fit')

def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'num_distrib', lambda: 2)
    with pytest.raises(ValueError, match='Resume must run in one process, got 2'): fit(noisy_learner(0, Resume(tmp_path)), 'fit')
    assert not list(tmp_path.iterdir())

class Bomb:
    def __reduce__(self): return os.mkdir, ('exploded',)

@pytest.mark.parametrize('what', [Bomb(), [1, 2], {'epoch': 3}])
def test_a_foreign_file_is_refused_and_runs_no_code(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    torch.save(what, tmp_path/'resume.pt')
    with pytest.raises(ValueError, match='is no checkpoint of `Resume`'): fit(noisy_learner(0, Resume(tmp_path)), 'fit')
    assert not (tmp_path/'exploded').exists()

def test_another_run_s_checkpoint_is_refused(tmp_path):
    fit(noisy_learner(0, Resume(tmp_path, dict(arm='a'))), 'fit')
    same = dict(folder=tmp_path, settings=dict(arm='a'))
    def refused(said, *cbs, how='fit', n=3, lr=.05, wd=None, **kw):
        learn = noisy_learner(0, *cbs, **kw)
        with pytest.raises(ValueError, match=said), learn.no_bar(), learn.no_logging(): getattr(learn, how)(n, lr, wd=wd)
        assert (tmp_path/'resume.pt').exists()
    refused("settings.arm was 'a' there and is 'b' here", Resume(tmp_path, dict(arm='b')))
    refused('epochs was 3 there and is 4 here', Resume(**same), n=4)
    refused('schedule.lr', Resume(**same), how='fit_one_cycle')
    refused('optimizer', Resume(**same), lr=.06)
    refused('optimizer', Resume(**same), wd=.5)
    refused('optimizer', Resume(**same), opt=Adam)
    refused('callbacks', Resume(**same), Memory)

def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(TypeError, match='plain numbers, text and tensors, got object'): fit(noisy_learner(0, Resume(tmp_path, dict(x=object()))), 'fit')

def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    class FullDisk(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch == 1: monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError): fit(noisy_learner(0, Resume(tmp_path), FullDisk), 'fit')
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ['resume.pt']
    again = noisy_learner(0, Resume(tmp_path))
    assert fit(again, 'fit') == fit(noisy_learner(0), 'fit') and again.resume.done == 1

killed = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
from test_train import *
class Kill(Callback):
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == (1, 3): os.kill(os.getpid(), signal.SIGKILL)
learn = noisy_learner(0, Resume(sys.argv[1]), *[Kill]*(sys.argv[2] == 'kill'))
e = fit(learn, sys.argv[3])
print(learn.resume.done, hashlib.sha256(json.dumps(e).encode()).hexdigest())
"""

def test_a_killed_process_goes_on_in_another(tmp_path):
    def run(kill): return subprocess.run([sys.executable, '-c', killed, str(tmp_path), kill, 'fit_one_cycle', os.path.dirname(__file__)], capture_output=True, text=True)
    first, second = run('kill'), run('live')
    assert first.returncode == -signal.SIGKILL and (tmp_path/'resume.pt').exists()
    want = hashlib.sha256(json.dumps(fit(noisy_learner(0), 'fit_one_cycle')).encode()).hexdigest()
    assert second.stdout.split() == ['1', want], second.stderr
