"Scores of masks: shapes and types, the rules at empty masks and at exact thresholds, sums over batches"
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from resnotes import checks, metrics
from resnotes.metrics import MaskCounts, accuracy, class_iou, class_metric, confusion, iou, mask_counts, mask_metric, mean_iou, tgs_score

SCORES = [accuracy, iou, tgs_score, lambda *m: iou(*m, over='batch')]
every_score = pytest.mark.parametrize('score', SCORES, ids=['accuracy', 'iou', 'tgs_score', 'iou over pixels'])


def masks(n, side=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    density = torch.tensor([0., .3, .9, 1.])[torch.randint(4, (2, n, 1, 1), generator=g)]
    return torch.rand(2, n, side, side, generator=g) < density


@every_score
def test_forms_and_layouts_agree(score):
    p, t = masks(20)
    expected = score(p, t)
    forms = [lambda m: m.byte(), lambda m: m.float(), lambda m: m.long()[:, None], lambda m: m.half(),
             lambda m: m.transpose(1, 2).contiguous().transpose(1, 2), lambda m: m[:, None].float().to(memory_format=torch.channels_last)]
    for f in forms:
        for g in forms: assert score(f(p), g(t)) == expected


@every_score
@pytest.mark.parametrize('side', [1, 5])
def test_empty_and_full(score, side):
    empty, full = torch.zeros(1, side, side), torch.ones(1, side, side)
    assert score(empty, empty) == score(full, full) == 1
    assert score(empty, full) == score(full, empty) == 0


@every_score
@given(st.integers(0, 2**30), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_counts_of_batches_score_as_one(score, seed, sizes):
    p, t = masks(sum(sizes), 4, seed)
    counts = [mask_counts(a, b) for a, b in zip(p.split(sizes), t.split(sizes))]
    assert score(MaskCounts(*map(torch.cat, zip(*counts)))) == score(p, t)


def test_counts_add_up_to_the_pixels():
    counts = mask_counts(*masks(30))
    assert (sum(counts) == 36).all() and all((c >= 0).all() for c in counts)
    assert all(c.dtype == torch.int64 and c.shape == (30,) for c in counts)


@pytest.mark.parametrize('k', range(10, 20))
def test_meeting_a_threshold_exactly_is_no_hit(k):
    truth = torch.ones(1, 20, 50)
    def score(n): return tgs_score(torch.arange(1000).reshape(1, 20, 50) < n, truth).item()
    assert score(50*k) == (k - 10)/10 and score(50*k + 1) == (k - 9)/10


@given(st.integers(0, 2**30))
@settings(max_examples=40, deadline=None)
def test_score_lies_near_the_iou_of_hit_objects(seed):
    p, t = masks(1, 5, seed)
    j, s = iou(p, t).item(), tgs_score(p, t).item()
    assert s == 0 if j <= .5 else 2*j - 1 <= s + 1e-9 <= 2*j - 1 + .1 + 1e-6


@given(st.integers(0, 2**30))
@settings(max_examples=30, deadline=None)
def test_scores_are_symmetric(seed):
    p, t = masks(4, 5, seed)
    for score in SCORES: assert score(p, t) == score(t, p)


def test_fastai_metric_over_unequal_batches():
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    p, t = masks(23)
    logits = torch.where(p, 1., -1.)[:, None]
    items = list(zip(logits, t))
    names = 'accuracy iou tgs_score pixels'.split()
    metrics = [mask_metric(accuracy), mask_metric(iou), mask_metric(tgs_score), mask_metric(iou, name='pixels', over='batch')]
    model = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(model.weight), torch.nn.init.zeros_(model.bias)
    learn = Learner(DataLoaders(DataLoader(items, bs=5), DataLoader(items, bs=10)), model,
                    loss_func=lambda x, y: x.mean(), metrics=metrics)
    for _ in range(2): assert list(learn.validate())[1:] == [score(p, t).item() for score in SCORES]
    assert [m.name for m in metrics] == names
    learn.metrics[0].reset()
    assert learn.metrics[0].value is None


def test_fastai_metric_cuts_probabilities_too():
    from types import SimpleNamespace
    metric = mask_metric(iou, cut=.5)
    metric.reset()
    metric.accumulate(SimpleNamespace(pred=torch.tensor([[[.4, .6]]]), yb=(torch.tensor([[[0, 1]]]),), to_detach=lambda x: x.detach()))
    assert metric.value == 1


@pytest.mark.parametrize('cut', [0., .5, -1.])
def test_a_logit_at_exactly_the_cut_is_background(cut):
    from types import SimpleNamespace
    metric = mask_metric(accuracy, cut=cut)
    metric.reset()
    above = torch.nextafter(torch.tensor(cut), torch.tensor(9.)).item()
    metric.accumulate(SimpleNamespace(pred=torch.tensor([[[cut, above]]]), yb=(torch.tensor([[[0, 1]]]),), to_detach=lambda x: x.detach()))
    assert metric.value == 1

@pytest.mark.parametrize('call, error, words', [
    (lambda p, t: iou(p, 255*t.byte()), ValueError, 'divide a 0/255 mask by 255'),
    (lambda p, t: iou(p.float() - .5, t), ValueError, 'pred must hold 0 and 1 only, got values from -0.5 to 0.5'),
    (lambda p, t: tgs_score(p, t[1:]), ValueError, 'target must fit images of shape'),
    (lambda p, t: accuracy(p), TypeError, 'target must be a tensor, got NoneType'),
    (lambda p, t: accuracy(p[0], t[0]), ValueError, 'pred must be [N, H, W] or [N, 1, H, W]'),
    (lambda p, t: iou(p[:0], t[:0]), ValueError, 'not empty'),
    (lambda p, t: iou(p, t, over='pixel'), ValueError, "over must be one of 'image', 'batch'"),
    (lambda p, t: mask_metric('iou'), TypeError, 'score must be a function'),
    (lambda p, t: mask_metric(iou, over='pixel'), ValueError, "over must be one of 'image', 'batch'"),
    (lambda p, t: mask_metric(iou, cut='0'), TypeError, 'cut must be a real number'),
])
def test_refusals(call, error, words):
    with pytest.raises(error) as failure: call(*masks(4))
    assert words in str(failure.value)


def test_numpy_reference_on_many_masks():
    p, t = masks(200, 9, seed=3)
    a, b = p.numpy().reshape(200, -1), t.numpy().reshape(200, -1)
    inter, union = (a & b).sum(1), (a | b).sum(1)
    each = np.where(union == 0, 1, inter/np.maximum(union, 1))
    assert iou(p, t).item() == pytest.approx(each.mean(), abs=1e-14)
    assert tgs_score(p, t).item() == pytest.approx((each[:, None] > np.arange(10, 20)/20).mean(), abs=1e-14)


@pytest.mark.parametrize('make', [lambda: mask_metric(iou), lambda: mask_metric(accuracy), lambda: class_metric(mean_iou, 2), lambda: class_metric(class_iou, 2)])
def test_one_logit_that_is_no_number_makes_the_metric_none_either(make):
    from types import SimpleNamespace
    metric, t = make(), torch.zeros(1, 2, 2, dtype=torch.long)
    good = torch.zeros(1, 1 if 'iou' == metric.name or 'accuracy' == metric.name else 2, 2, 2)
    bad = good.clone()
    bad[0, 0, 1, 1] = math.nan
    def value(*preds):
        metric.reset()
        for pred in preds: metric.accumulate(SimpleNamespace(pred=pred, yb=(t,), to_detach=lambda x: x.detach()))
        return torch.as_tensor(metric.value).flatten()
    assert value(good, good)[0] == 1 and value(bad, good).isnan().all() and value(good, bad).isnan().all() and value(good)[0] == 1
    assert value(good + math.inf, good).isfinite()[0], 'an infinite logit has a side'


def test_where_no_pixel_counts_the_mean_is_one():
    "As for two empty masks, and not NaN"
    none = torch.zeros(2, 3, 3, dtype=torch.long)
    assert mean_iou(none) == mean_iou(none, 'image') == 1 and class_iou(none).isnan().all()

@pytest.mark.parametrize('pixels', [1, 15, 16, 17, 31, 255, 256, 4097])
def test_pixels_are_counted_whatever_their_number_and_their_order_in_memory(pixels):
    full = torch.ones(3, pixels, dtype=torch.bool)
    some = torch.rand(pixels, 5) < .5
    for mask in (full, some.T, some.T[::2], ~full): assert torch.equal(metrics._count(mask), mask.sum(1))

def test_a_target_is_checked_before_pixels_are_ignored():
    pred = torch.rand(2, 4, 4) > .5
    for target, error, said in ((None, TypeError, 'target must be'), (torch.ones(2, 5, 5, dtype=torch.uint8), ValueError, 'target must'),
                                (torch.ones(32), ValueError, 'target must')):
        with pytest.raises(error, match=said): mask_counts(pred, target, ignore_index=255)

def test_no_image_has_no_mean():
    with pytest.raises(ValueError, match='counts must be of at least one image, got none'): mean_iou(torch.zeros(0, 3, 3, dtype=torch.long), 'image')

@pytest.mark.parametrize('target, ignored', [(torch.tensor([[[1., 255.5]]]), 255), (torch.tensor([[[1., .5]]]), 0), (torch.tensor([[[1, 255]]], dtype=torch.uint8), -1)],
                         ids=['255.5 is not 255', '0.5 is not 0', 'the byte 255 is not -1'])
def test_what_is_ignored_is_that_very_number(target, ignored):
    with pytest.raises(ValueError, match='target must hold 0 and 1 only'): mask_counts(torch.ones(1, 1, 2), target, ignore_index=ignored)

@pytest.mark.parametrize('make, score', [(mask_metric, iou), (lambda score, **kw: class_metric(score, 3, **kw), mean_iou)])
def test_a_metric_has_the_name_it_is_given_or_that_of_its_score(make, score):
    assert make(score).name == score.__name__ and make(score, name='column').name == 'column'
    assert make(partial(score, over='batch')).name == 'partial'

@pytest.mark.parametrize('count', [mask_counts, lambda p, t, **kw: confusion(p, t, 2, **kw)])
def test_values_are_waited_for_unless_told_otherwise(count, monkeypatch):
    waits, mask = [], torch.ones(1, 2, 2, dtype=torch.long)
    monkeypatch.setattr(checks, '_wrong', lambda fits, wait, says: waits.append(wait))
    for kw in ({}, dict(wait=True), dict(wait=False)): count(mask, mask, **kw)
    assert waits == [True]*4 + [False]*2   # a look at each of the two masks
