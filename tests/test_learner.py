"Learners for classes and masks, what a terminal sees, the worst images, and masks for a folder"
import math, os, sys

import numpy as np
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders, show_results
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.optimizer import Adam
from fastai.torch_core import TensorCategory, TensorImage, TensorImageBW, TensorMask, no_random
from fastai.vision.data import ImageBlock, MaskBlock
from hypothesis import given, settings, strategies as st
from sklearn.datasets import load_digits
from torch import nn

import resnotes.learner as learner
from resnotes.data import cifar10, digits
from resnotes.learner import LogitLoss, bars_visible, classifier, first_batch, logits_of, segmenter, sgd, top_losses, visible_progress
from resnotes.losses import BCEMaskLoss, IoULoss, LovaszLoss, MixedLoss
from resnotes.metrics import iou, mask_metric
from resnotes.networks import build
from resnotes.salt import salt
from resnotes.segment import predict_masks
from resnotes.tiles import ClassMask

def plain(x): return x.as_subclass(torch.Tensor)

images = [(torch.tensor(x/16 - .3).float()[None], y)
          for x, y in zip(load_digits().images[:400], load_digits().target)]

@pytest.fixture(scope='module')
def dls(): return digits(bs=256)


# what is seen

def test_progress_bar_only_where_it_is_seen(dls, monkeypatch, capsys):
    learn = Learner(dls, build('taki_tower', depth=1), loss_func=CrossEntropyLossFlat())
    assert not bars_visible()
    with visible_progress(learn): learn.fit(1)
    assert capsys.readouterr().out == ''
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert bars_visible()
    with visible_progress(learn): learn.fit(1)
    assert 'train_loss' in capsys.readouterr().out


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
            opt.step()
            opt.zero_grad()
    for p, q in zip(ours.parameters(), theirs.parameters()): torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)

def test_decay_reaches_weights_and_nothing_else_through_a_learner(dls):
    model = Odd()
    learn = classifier(dls, model, lr=.5, wd=.1, momentum=0.)
    learn.create_opt()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    learn.opt.step()
    for n, p in model.named_parameters(): torch.testing.assert_close(p.detach(), before[n]*(.95 if n in ('conv.weight', 'head.weight') else 1.))

def test_settings_of_a_learner_reach_its_optimizer(dls):
    learn = classifier(dls, Odd(), lr=.03, wd=.01, momentum=.8)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert {k: v for k, v in learn.opt.hypers[0].items()} == dict(lr=.03, wd=.01, mom=.8)
        learn.fit_one_cycle(1)
    assert set(map(float, learn.recorder.hps['mom'])) == {.8} and .025 < max(learn.recorder.hps['lr']) <= .03
    adam = classifier(dls, Odd(), opt_func=Adam)
    adam.create_opt()
    assert 'sqr_mom' in adam.opt.hypers[0]

def test_what_is_not_said_of_a_learner(dls, tiles):
    for learn in (classifier(dls, Odd()), segmenter(tiles, MaskNet())):
        assert (learn.lr, learn.moms, learn.opt_func.keywords) == (.1, (.9, .9, .9), dict(momentum=.9, wd=1e-4))
    assert [len(part) for part in first_batch(tiles)] == [len(part) for part in first_batch(dls)] == [1, 1]
    assert dict(sgd([nn.Parameter(torch.ones(2, 2))]).hypers[0]) == dict(lr=.1, mom=.9, wd=1e-4)

def test_the_first_batch_is_the_first_item_of_the_validation_part(dls, tiles):
    for loaders in (dls, tiles):
        for one, several in zip(first_batch(loaders), loaders.valid.one_batch()): torch.testing.assert_close(plain(one), plain(several)[:1])

def test_several_logits_per_pixel_are_told_by_channels_in_four_dimensions():
    loss = LogitLoss(nn.functional.cross_entropy)
    one, two, flat = torch.zeros(2, 1, 3, 3), torch.zeros(2, 2, 3, 3), torch.zeros(2, 3, 4)
    for x, p in ((one, .5), (two, .5), (flat, .5), (torch.zeros(2, 4, 3, 3), .25)): assert (loss.activation(x) == p).all()
    assert loss.decodes(one).shape == one.shape and loss.decodes(flat).dtype == torch.bool and loss.decodes(two).shape == (2, 3, 3)
    assert not loss.decodes(torch.full((2, 1, 3, 3), .5)).any() and loss.decodes(torch.full((2, 1, 3, 3), .5001)).all()
    assert loss.reduction == 'mean' and loss.channel is False

@pytest.mark.parametrize('kw, said', [(dict(lr=0.), 'lr must be greater than 0, got 0.0'), (dict(lr=-1.), 'lr must'), (dict(lr=math.nan), 'lr must'), (dict(lr=math.inf), 'lr must'),
                                      (dict(wd=-1e-4), 'wd must'), (dict(momentum=1.), 'momentum must'), (dict(momentum=-.1), 'momentum must'),
                                      (dict(lr='fast'), 'lr must be a real number'), (dict(model='resnet20'), 'model must be an nn.Module'), (dict(model=3), 'must be a name or one of|model must be an nn.Module, got int')])
@pytest.mark.parametrize('make', ['classifier', 'segmenter'])
def test_learners_refuse(dls, tiles, make, kw, said):
    data, model = (dls, Odd()) if make == 'classifier' else (tiles, MaskNet())
    with pytest.raises((ValueError, TypeError), match=said): getattr(learner, make)(**{'dls': data, 'model': model} | kw)

def test_classes_and_masks_are_not_mixed_up(dls, tiles):
    with pytest.raises(ValueError, match='dls must give an image and its mask, got a target of shape'): segmenter(dls, MaskNet())
    with pytest.raises(ValueError, match=r'dls must give an image and its class, got a target of shape \[1, 32, 32\]'): classifier(tiles, Odd())
    plain = DataLoaders(DataLoader(images[:64], bs=32), DataLoader(images[64:96], bs=32))
    with pytest.raises(ValueError, match='dls must know its number of classes'): classifier(plain, Odd())
    with pytest.raises(ValueError, match='dls must give an image and its mask'): segmenter(plain, MaskNet())
    rows = DataLoaders(*[DataLoader([(x, torch.zeros(5)) for x, _ in images[:64]], bs=32)]*2)
    with pytest.raises(ValueError, match=r'dls must give an image and its mask, got a target of shape \[5\]'): segmenter(rows, MaskNet())

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
def tiles(): return salt(n=40, bs=8, size=32)

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

@pytest.mark.parametrize('loss, name', [(nn.MSELoss(), 'MSELoss'), (nn.functional.binary_cross_entropy_with_logits, 'binary_cross')])
def test_a_loss_that_cannot_decide_is_refused_with_what_to_pass(tiles, loss, name):
    with pytest.raises(TypeError, match=f'loss must have `activation` and `decodes`, .*LogitLoss.loss.*{name}'): segmenter(tiles, MaskNet(), loss=loss)

@pytest.mark.parametrize('loss', [nn.BCEWithLogitsLoss(), LogitLoss(nn.functional.binary_cross_entropy_with_logits)])
def test_losses_from_elsewhere_train_decide_and_rank(tiles, loss):
    torch.manual_seed(0)
    learn = segmenter(tiles, MaskNet(), loss=loss)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)
    x, y = first_batch(tiles)
    with learn.no_bar(): probs, truth, decided = learn.get_preds(with_decoded=True)
    assert torch.equal(decided, probs > .5)
    each = [nn.functional.binary_cross_entropy(p, t).item() for p, t in zip(probs, plain(truth))]
    assert top_losses(learn, k=8).loss.sort_index().tolist() == pytest.approx(each, rel=1e-4)


# fastai's loaders, several classes, and what models return

def ringed(n, side=24):
    rng, at = np.random.default_rng(0), np.arange(side)
    distance = np.stack([np.hypot(at[:,None] - z, at - x) for z, x in rng.uniform(6, 18, (n, 2))])
    codes = ((distance < 7) + 1*(distance < 4)).astype(np.uint8)
    return np.uint8([(60, 120, 60), (150, 60, 60), (60, 60, 150)])[codes], codes

def fastais(codes=('ground', 'ring', 'disc'), n=24, bs=4, binary=False):
    pictures, rings = ringed(n)
    if binary: rings = np.minimum(rings, 1)
    block = DataBlock((ImageBlock, MaskBlock(codes and list(codes))), splitter=IndexSplitter(range(8)),
                      get_x=lambda i: pictures[i], get_y=lambda i: rings[i])
    return block.dataloaders(list(range(n)), bs=bs, num_workers=0)

class ClassNet(nn.Module):
    "Logits as some networks give them"
    def __init__(self, form=lambda x: x, out=3):
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, out, 3, padding=1), form
    def forward(self, x): return self.form(self.conv(x))

def fit(learn, epochs=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .1)
    return list(learn.recorder.values[-1])

def test_fastais_loaders_train_with_their_codes():
    torch.manual_seed(0)
    learn = segmenter(fastais(), ClassNet())
    values = fit(learn, 12)
    with learn.no_bar(): probs, codes, decided = learn.get_preds(with_decoded=True)
    assert probs.shape == (8, 3, 24, 24) and torch.equal(decided, probs.argmax(1)) and codes.shape == (8, 24, 24)
    ious = [((decided == c) & (codes == c)).sum()/((decided == c) | (codes == c)).sum() for c in range(3)]
    assert values[2] == pytest.approx(float(sum(ious)/3), abs=1e-5) and values[2] > .45 and (codes == 0).float().mean()/3 < .3

@pytest.mark.parametrize('codes', [('ground', 'disc'), None])
@pytest.mark.parametrize('loss', [None, IoULoss(), nn.BCEWithLogitsLoss()])
def test_two_codes_will_do_for_one_logit_per_pixel(codes, loss):
    learn = segmenter(fastais(codes, binary=True), 'strict_unet48' if loss is None and codes is None else ClassNet(out=1), loss=loss or IoULoss())
    values = fit(learn)
    assert learn.recorder.metric_names[3:6] == ['iou', 'iou_all', 'tgs_score'] and all(map(math.isfinite, values))
    two = segmenter(fastais(('ground', 'disc'), binary=True), ClassNet(out=2))
    assert math.isfinite(fit(two)[2]) and len(two.recorder.values[-1]) == 3

@pytest.mark.parametrize('form', [lambda x: {'out': x, 'aux': x}, lambda x: {'logits': x}, lambda x: [x], lambda x: (x,)])
def test_logits_are_taken_out_of_what_a_model_returns(form):
    def run(*form):
        with no_random(0): return fit(segmenter(fastais(), ClassNet(*form)))
    assert run(form) == run()

@pytest.mark.parametrize('form, said', [(lambda x: {'mask': x}, r"got a dict of \['mask'\]"), (lambda x: [x, x], 'got a list of 2'), (lambda x: (x, x, x), 'got a tuple of 3'), (lambda x: None, 'got a NoneType')])
def test_what_holds_no_logits_is_named(form, said):
    with pytest.raises(TypeError, match="model must return a tensor, or a dict with 'out' or 'logits', " + said): fit(segmenter(fastais(), ClassNet(form)))

def test_channels_and_classes_must_agree(tiles):
    with pytest.raises(ValueError, match='model must take images of 3 channels, as dls gives them, got one that takes 1'): segmenter(fastais(), build('strict_unet48'))
    built = segmenter(fastais(), 'strict_unet48').model.config
    assert (built.in_channels, built.out_channels) == (3, 3)
    assert segmenter(tiles, 'strict_unet48').model.config.in_channels == 1
    assert segmenter(tiles, 'strict_unet272').model.config.in_channels == 1   # three by its name
    with pytest.raises(ValueError, match=r'logits of shape \[4, 3, 24, 24\], got \[4, 5, 24, 24\]'): fit(segmenter(fastais(), ClassNet(out=5)))

def test_looking_at_a_batch_moves_no_generator(tiles):
    import random
    torch.manual_seed(0); random.seed(0); np.random.seed(0)
    before, order = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()), tiles.train.rng.getstate()
    first_batch(tiles)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate() and (before[2] == np.random.get_state()[1]).all()
    assert order == tiles.train.rng.getstate()

def test_foreign_class_losses_get_the_shape_they_want():
    seen = []
    def loss(x, t): seen.append((t.shape, t.dtype)); return x.square().mean()
    fit(segmenter(fastais(), ClassNet(), loss=LogitLoss(loss, channel=True)))
    assert seen[0] == ((4, 1, 24, 24), torch.int64)
    assert math.isfinite(fit(segmenter(fastais(), ClassNet(), loss=nn.CrossEntropyLoss()))[2])

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
    with torch.no_grad():
        for p in learn.model.parameters(): p.zero_()   # class 0, whatever comes
    with learn.no_bar(): learn.show_results(max_n=100, shuffle=False)
    assert {(a.get_title(), a.title.get_color()) for a in plt.gcf().axes} >= {('0', 'C0'), ('0, not 1', 'C1')}
    plt.close('all')

@pytest.mark.parametrize('kind, axes', [('masks', 12), ('classes', 10)])
def test_six_masks_or_ten_classes_are_drawn_unless_more_are_asked_for(kind, axes):
    import matplotlib.pyplot as plt
    image, mask = TensorImage(torch.zeros(3, 4, 4)), ClassMask(torch.zeros(4, 4).long())
    y, target = (TensorMask(torch.zeros(1, 4, 4)), mask) if kind == 'masks' else (TensorCategory(torch.zeros(1)), '1')
    drawn = show_results(image[None], y, [(image, target)]*11, [(target,)]*11)
    assert len(drawn) == axes and sum(ax.has_data() for ax in drawn) == axes
    if kind == 'masks': assert len({round(ax.get_position().x0, 3) for ax in drawn}) == 2   # truth and network side by side
    plt.close('all')


# the worst

def test_top_losses_look_at_training_images_as_they_are(tmp_path):
    from resnotes.salt import salt
    with no_random(0): learn = segmenter(salt(20, bs=4, size=32, augment=True, cutout=8), build('strict_unet48', width=4))
    with learn.no_bar(), learn.no_logging(): first, again = top_losses(learn, 3, part=0), top_losses(learn, 3, part=0)
    assert first.equals(again) and learn.dls.train.split_idx == 0 and learn.dls.train.dataset.split_idx == 0

def test_top_losses_ranks_images_one_by_one(masker, tiles, dls):
    x, y = (t.as_subclass(torch.Tensor) for t in tiles.valid.new(bs=8, shuffle=False).one_batch())
    with torch.no_grad(): losses = IoULoss(over='image', reduction='none')(masker.model.eval()(x), y)
    worst = top_losses(masker, k=100)
    assert worst.loss.is_monotonic_decreasing and len(worst) == 8
    assert worst.loss.sort_index().tolist() == pytest.approx(losses.tolist(), rel=1e-5)
    assert (masker.loss_func.over, masker.loss_func.reduction) == ('batch', 'mean') and masker.recorder is not None
    assert worst.item.tolist() == [tiles.valid_ds.items[i] for i in worst.index]
    learn = classifier(dls, Odd())
    part = top_losses(learn, k=5, part=0)
    x, y = (torch.stack([torch.as_tensor(o[i]) for o in [dls.train_ds[j] for j in part.index]]) for i in (0, 1))
    with torch.no_grad(): again = nn.functional.cross_entropy(learn.model.eval()(dls.valid.after_batch((x.as_subclass(TensorImageBW),))[0].as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor).long(), reduction='none')
    assert part.loss.tolist() == pytest.approx(again.tolist(), rel=1e-4)
    with pytest.raises(ValueError, match='k must'): top_losses(learn, k=0)
    with pytest.raises(ValueError, match='part must be one of 0, 1, got 2'): top_losses(learn, part=2)

def test_top_losses_leaves_the_history(dls):
    learn = classifier(dls, Odd())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    values = list(learn.recorder.values)
    usual = top_losses(learn)
    assert list(learn.recorder.values) == values
    assert len(usual) == 9 and usual.equals(top_losses(learn, k=9, part=1)) and not usual.equals(top_losses(learn, k=9, part=0))






# one cycle, weight decay, and the cut

def test_one_cycle_rises_for_a_quarter_and_falls_along_cosines(dls):
    learn = classifier(dls, Odd(), lr=.3, momentum=.7)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, .3)
    lrs = np.array(learn.recorder.hps['lr'], dtype=float)
    n = 4*len(dls.train)
    def cosine(a, b, t): return a + (b - a)*(1 - math.cos(math.pi*t))/2
    def wanted(t): return cosine(.012, .3, 4*t) if t < .25 else cosine(.3, 3e-6, (t - .25)/.75)
    assert len(lrs) == n and lrs == pytest.approx([wanted(i/n) for i in range(n)], rel=1e-5)
    assert lrs[0] == pytest.approx(.3/25) and lrs.argmax() == n//4 and lrs[n//4] == pytest.approx(.3)
    assert set(map(float, learn.recorder.hps['mom'])) == {.7}

@pytest.mark.parametrize('momentum', [0., .9])
def test_decay_follows_the_rate_of_the_cycle(dls, momentum):
    "Where the loss says nothing, a weight shrinks by lr*wd per step, with the momentum of its last ones"
    class Silent(nn.Module):
        def forward(self, out, y): return 0*out.sum()
    model = Odd()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn = classifier(dls, model, lr=.5, wd=.1, momentum=momentum, loss=Silent(), metrics=[])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .5)
    w, v = 1., 0.
    for lr in map(float, learn.recorder.hps['lr']):
        v = momentum*v + .1*w
        w -= lr*v
    assert w < .9
    for name, p in model.named_parameters():
        factor = w if name in ('conv.weight', 'head.weight') else 1.
        torch.testing.assert_close(p.detach(), factor*before[name], rtol=1e-4, atol=1e-6)

class Constant(nn.Module):
    "The same logit for every pixel"
    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))
    def forward(self, x): return torch.zeros_like(x) + self.logit

@pytest.mark.parametrize('cut', [0., 1.5, -2.])
def test_a_logit_at_exactly_the_cut_is_background(tiles, cut):
    truth = torch.stack([plain(torch.as_tensor(y)) for _, y in tiles.valid_ds]).float()
    for logit, decided in ((cut, torch.zeros_like(truth)), (np.nextafter(np.float32(cut), np.float32(9)).item(), torch.ones_like(truth))):
        learn = segmenter(tiles, Constant(logit), metrics=mask_metric(iou, cut=cut))
        with learn.no_bar(), learn.no_logging(): got = learn.validate()[1]
        assert got == pytest.approx(iou(decided, truth).item())

def test_half_a_probability_is_background_wherever_it_is_decided(tiles):
    learn, image = segmenter(tiles, Constant(0.)), torch.zeros(1, 8, 8, dtype=torch.uint8)
    assert not predict_masks(learn, [image])[0].any()
    with learn.no_bar(): assert not learn.get_preds(with_decoded=True)[2].any()

def test_a_run_is_a_function_of_its_seed_and_leaves_the_generator_alone():
    def run(seed):
        with no_random(seed):
            learn = classifier(digits(bs=256, seed=seed), build('taki_tower', depth=2, width=4), .05)
            with learn.no_bar(), learn.no_logging(): learn.fit(1)
        return [float(loss) for loss in learn.recorder.losses]
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    first = run(4)
    assert torch.rand(1) == want
    torch.manual_seed(1)
    assert run(4) == first != run(5)

@pytest.mark.skipif('RESNOTES_DATA' not in os.environ, reason='RESNOTES_DATA names no folder')
def test_cifar_trains_at_tiny_size():
    dls = cifar10(small=True, n=100, bs=20)
    learn = classifier(dls, build('taki_tower', depth=2, kernel_size=8, stride=4, in_channels=3), .01)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(learn.recorder.losses) == 5 and math.isfinite(learn.recorder.values[0][1])

def test_a_first_batch_of_pytorch_s_own_loaders_and_of_three_members():
    "Without `one_batch` a loader is asked for its first batch; the target is the last member, however many stand before it"
    data = [(torch.full((1, 4, 4), float(i)), i, torch.zeros(7, 9)) for i in range(6)]
    dls = DataLoaders(*[torch.utils.data.DataLoader(data, batch_size=2) for _ in range(2)])
    x, i, y = first_batch(dls)
    assert i.tolist() == [0, 1] and x.shape == (2, 1, 4, 4) and learner._target_shape(dls) == (7, 9)
