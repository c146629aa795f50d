"Losses on masks: shapes, types and precisions they must bear, and properties that hold for any input"
import inspect, itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from resnotes import losses
from resnotes.losses import (BCEMaskLoss, ClassIoULoss, CrossEntropyMaskLoss, IoULoss, LovaszLoss, LovaszSoftmaxLoss, MixedLoss, jaccard_gains, lovasz_extension, lovasz_hinge,
                             lovasz_sigmoid, lovasz_softmax, soft_iou)

LOSSES = [IoULoss(0., 'image'), IoULoss(.62, 'image'), IoULoss(), LovaszLoss(over='image'), LovaszLoss(), LovaszLoss('sigmoid', 'image'),
          LovaszLoss('sigmoid'), BCEMaskLoss(), MixedLoss((BCEMaskLoss(), 1.), (LovaszLoss(over='image'), .5))]
every_loss = pytest.mark.parametrize('loss', LOSSES, ids=str)


def batch(n=3, h=5, w=4, seed=0, dtype=torch.float32):
    "Logits and masks; the first mask is empty, the last one full"
    g = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(n, 1, h, w, generator=g, dtype=torch.float64).to(dtype), torch.rand(n, h, w, generator=g) < .5
    target[0], target[-1] = False, True
    return logits, target


def value_and_grad(loss, logits, target):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@every_loss
@pytest.mark.parametrize('form', [lambda t: t, lambda t: t[:, None], lambda t: t.byte(), lambda t: t.long(), lambda t: t.float()[:, None],
                                  lambda t: t.half(), lambda t: t.double()], ids='bool chan byte long float half double'.split())
def test_target_forms_agree(loss, form):
    logits, target = batch()
    assert loss(logits, form(target)) == loss(logits, target) == loss(logits[:, 0], form(target))


@every_loss
def test_memory_layout_is_irrelevant(loss):
    logits, target = batch()
    expected = value_and_grad(loss, logits, target)
    for x in (logits.to(memory_format=torch.channels_last), logits.transpose(2, 3).contiguous().transpose(2, 3),
              torch.stack([logits, logits], -1)[..., 0]):
        t = target.transpose(1, 2).contiguous().transpose(1, 2)
        value, grad = value_and_grad(loss, x, t)
        assert value == expected[0] and torch.equal(grad, expected[1])


@every_loss
@pytest.mark.parametrize('n', [1, 2])
@pytest.mark.parametrize('fill', [False, True])
def test_one_pixel_empty_and_full(loss, n, fill):
    for side in (1, 4):
        value, grad = value_and_grad(loss, torch.zeros(n, 1, side, side), torch.full((n, side, side), fill))
        assert value.isfinite() and grad.isfinite().all()
        wrong = grad if not fill else -grad
        assert (wrong >= 0).all()


@every_loss
@pytest.mark.parametrize('size', [90., 100., 1e4])
def test_extreme_logits(loss, size):
    logits, target = batch(4, 6, 6)
    target[1] = False
    for x in (size*logits.sign(), -size*torch.ones_like(logits), size*torch.ones_like(logits)):
        value, grad = value_and_grad(loss, x, target)
        assert value.isfinite() and grad.isfinite().all()


@every_loss
def test_saturated_and_right_costs_nothing(loss):
    _, target = batch()
    value, grad = value_and_grad(loss, 1e4*(2.*target - 1), target)
    assert value == 0 and grad.abs().max() == 0


@every_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_the_rounded_logits(loss, dtype):
    logits, target = batch(4, 101, 101, dtype=dtype)
    expected, grad = value_and_grad(loss, logits.float(), target)
    with torch.autocast('cpu', dtype=torch.bfloat16): value, half_grad = value_and_grad(loss, logits, target)
    assert value.dtype == torch.float32 and value == expected
    torch.testing.assert_close(half_grad, grad.to(dtype), rtol=0, atol=0)


@every_loss
def test_gradcheck(loss):
    logits, target = batch(dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(), target))


@every_loss
def test_loss_of_each_image(loss):
    logits, target = batch()
    loss.reduction = 'none'
    try: each = loss(logits, target)
    finally: loss.reduction = 'mean'
    assert each.shape == (3,)
    torch.testing.assert_close(each.mean(), loss(logits, target))
    if 'batch' not in str(loss): torch.testing.assert_close(each, torch.stack([loss(x[None], t[None]) for x, t in zip(logits, target)]))


@every_loss
def test_image_order_is_irrelevant(loss):
    logits, target = batch(5)
    torch.testing.assert_close(loss(logits.flip(0), target.flip(0)), loss(logits, target))


def test_batch_losses_see_one_large_image():
    logits, target = batch()
    wide = logits.reshape(1, 1, -1, 4), target.reshape(1, -1, 4)
    for make in (lambda over: IoULoss(.62, over), lambda over: LovaszLoss('hinge', over), lambda over: LovaszLoss('sigmoid', over)):
        torch.testing.assert_close(make('batch')(logits, target), make('image')(*wide))


def test_every_loss_is_over_the_batch_unless_told_otherwise():
    "And smoothed by one pixel"
    logits, target = batch()
    assert ClassIoULoss()(*class_batch()) == ClassIoULoss(1., 'batch', 'present')(*class_batch()) != ClassIoULoss(1., 'image')(*class_batch())
    assert IoULoss()(logits, target) == IoULoss(1., 'batch')(logits, target) != IoULoss(over='image')(logits, target)
    for kind, f in (('hinge', lovasz_hinge), ('sigmoid', lovasz_sigmoid)):
        assert f(logits, target) == LovaszLoss(kind)(logits, target) == LovaszLoss(kind, 'batch')(logits, target) != f(logits, target, 'image')


def test_activation_and_decodes():
    loss, x = IoULoss(), torch.tensor([-1., 0., 1.])
    torch.testing.assert_close(loss.activation(x), x.sigmoid())
    assert loss.decodes(loss.activation(x)).tolist() == [False, False, True]


def test_compiled_loss_does_not_look_at_values():
    logits, target = batch()
    for loss in (IoULoss(.62), IoULoss(.62, 'image'), LovaszLoss(), LovaszLoss(over='image')):
        compiled = torch.compile(loss, backend='eager', fullgraph=True)
        assert compiled(logits, target.byte()) == loss(logits, target)


def test_soft_iou_without_a_gradient_trap():
    "A mass so small that its reciprocal overflows must not turn 0 x inf into NaN"
    for p in (0., 1e-45, 1e-39, 1e-30):
        probs = torch.full((1, 2, 2), p, requires_grad=True)
        soft_iou(probs, torch.zeros(1, 2, 2)).sum().backward()
        assert probs.grad.isfinite().all()
    least = torch.finfo(torch.float32).tiny   # the smallest mass that is one
    for p, iou in ((least, 0), (least/2, 1)): assert soft_iou(torch.full((1, 1, 1), p), torch.zeros(1, 1, 1)) == iou


@given(st.integers(1, 6), st.integers(0, 2**30), st.floats(0, 300))
@settings(max_examples=60, deadline=None)
def test_soft_iou_lies_in_the_unit_interval_and_grows_with_eps(side, seed, eps):
    g = torch.Generator().manual_seed(seed)
    p, t = torch.rand(2, side, side, generator=g, dtype=torch.float64), torch.rand(2, side, side, generator=g) < .4
    plain, smooth = soft_iou(p, t), soft_iou(p, t, eps)
    assert (plain >= 0).all() and (smooth <= 1).all() and (smooth >= plain - 1e-12).all()


def exact_jaccard(mistakes, truth):
    pred = {i for i in range(len(truth)) if truth[i] != mistakes[i]}
    true = {i for i in range(len(truth)) if truth[i]}
    return 1 - Fraction(len(pred & true), len(pred | true)) if pred | true else Fraction(0)


def exact_extension(errors, truth):
    "Integral of the Jaccard loss of {error >= threshold} over thresholds, in fractions"
    steps = sorted({Fraction(0), *map(Fraction, errors)})
    return sum((high - low)*exact_jaccard([e >= high for e in errors], truth) for low, high in zip(steps, steps[1:]))


pixels = st.lists(st.tuples(st.one_of(st.sampled_from([0., .5, 1., 2.]), st.floats(0, 1e3)), st.booleans()), min_size=1, max_size=12)


@given(pixels)
@settings(max_examples=150, deadline=None)
def test_extension_is_the_choquet_integral(pixels):
    errors, truth = zip(*pixels)
    ours = lovasz_extension(torch.tensor([errors], dtype=torch.float64), torch.tensor([truth])).item()
    assert ours == pytest.approx(float(exact_extension(errors, truth)), rel=1e-12, abs=1e-300)


def test_extension_is_the_set_function_on_sets():
    for truth, mistakes in itertools.product(itertools.product([False, True], repeat=4), repeat=2):
        ours = lovasz_extension(torch.tensor([mistakes], dtype=torch.float64), torch.tensor([truth])).item()
        assert ours == pytest.approx(float(exact_jaccard(mistakes, truth)), abs=1e-15)


@given(st.integers(0, 2**30), st.sampled_from([0., .2, .6, 1.]), st.sampled_from(['image', 'batch']), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_hinge_is_convex_and_bounds_the_jaccard_loss(seed, density, over, weight):
    g = torch.Generator().manual_seed(seed)
    a, b = 2*torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64)
    t = torch.rand(3, 4, 4, generator=g) < density
    between = lovasz_hinge(weight*a + (1 - weight)*b, t, over)
    assert between <= weight*lovasz_hinge(a, t, over) + (1 - weight)*lovasz_hinge(b, t, over) + 1e-12
    iou = soft_iou((a > 0).double(), t, dims=(-2, -1) if over == 'image' else None).mean()
    assert lovasz_hinge(a, t, over) >= 1 - iou - 1e-12


@given(st.integers(0, 2**30), st.floats(.01, 50))
@settings(max_examples=40, deadline=None)
def test_extension_is_positively_homogeneous_and_weights_sum_to_one(seed, scale):
    g = torch.Generator().manual_seed(seed)
    e, t = torch.rand(3, 9, generator=g, dtype=torch.float64), torch.rand(3, 9, generator=g) < .3
    torch.testing.assert_close(lovasz_extension(scale*e, t), scale*lovasz_extension(e, t))
    torch.testing.assert_close(jaccard_gains(e, t).sum(1), torch.ones(3, dtype=torch.float64))
    assert (jaccard_gains(e, t) >= 0).all()


def test_ties_in_any_order_give_one_value():
    e, t = torch.tensor([1., 1., 1., .5, .5, 0., 0.], dtype=torch.float64), torch.tensor([1, 0, 1, 0, 1, 0, 1]).bool()
    g = torch.Generator().manual_seed(0)
    values = {round(lovasz_extension(e[None, i], t[None, i]).item(), 14) for i in (torch.randperm(7, generator=g) for _ in range(30))}
    assert len(values) == 1


def test_sigmoid_loss_at_sharp_predictions_is_one_minus_iou():
    logits, target = batch(6, 7, 7, dtype=torch.float64)
    hard = (logits > 0).double()
    for over, dims in (('image', (-2, -1)), ('batch', None)):
        torch.testing.assert_close(lovasz_sigmoid(1e4*logits.sign(), target, over), 1 - soft_iou(hard, target, dims=dims).mean())


def test_gains_of_a_large_batch_are_accurate_in_single_precision():
    g = torch.Generator().manual_seed(0)
    e, t = torch.rand(1, 10**6, generator=g), torch.rand(1, 10**6, generator=g) < .3
    torch.testing.assert_close(jaccard_gains(e, t).double(), jaccard_gains(e.double(), t), rtol=1e-6, atol=0)


@pytest.mark.parametrize('call, error, words', [
    (lambda x, t: IoULoss()(x, 255*t.byte()), ValueError, 'divide a 0/255 mask by 255'),
    (lambda x, t: lovasz_hinge(x, 2*t.byte()), ValueError, 'target must hold 0 and 1 only, got values from 0 to 2'),
    (lambda x, t: lovasz_hinge(x, t*.5), ValueError, 'target must hold 0 and 1 only'),
    (lambda x, t: lovasz_sigmoid(x, t*float('nan')), ValueError, 'target must hold 0 and 1 only'),
    (lambda x, t: IoULoss()(x, t[:1]), ValueError, 'target must fit images of shape'),
    (lambda x, t: IoULoss()(x, t.transpose(1, 2)), ValueError, 'target must fit images of shape'),
    (lambda x, t: IoULoss()(x.expand(-1, 2, -1, -1), t), ValueError, 'logits must be [N, H, W] or [N, 1, H, W]'),
    (lambda x, t: IoULoss()(x[:0], t[:0]), ValueError, 'not empty'),
    (lambda x, t: IoULoss()(x.long(), t), TypeError, 'logits must be of a floating-point type'),
    (lambda x, t: IoULoss()(x.numpy(), t), TypeError, 'logits must be a tensor, got ndarray'),
    (lambda x, t: IoULoss(-1.), ValueError, 'eps must be'),
    (lambda x, t: IoULoss(over='images'), ValueError, 'over must be one of'),
    (lambda x, t: IoULoss(reduction='sum'), ValueError, 'reduction must be one of'),
    (lambda x, t: LovaszLoss('softmax'), ValueError, 'kind must be one of'),
    (lambda x, t: lovasz_hinge(x, t, 'pixels'), ValueError, 'over must be one of'),
    (lambda x, t: soft_iou(x, t), ValueError, 'probs must be fractions in [0, 1]'),
    (lambda x, t: soft_iou(x.to(torch.complex64), t), TypeError, 'probs must be of a floating-point type, got torch.complex64'),
    (lambda x, t: soft_iou(x.bool(), t), TypeError, 'probs must be of a floating-point type, got torch.bool'),
    (lambda x, t: lovasz_extension(x[:, 0, 0].half(), t[:, 0]), TypeError, 'errors must be a tensor of torch.float32 or torch.float64, got torch.float16'),
    (lambda x, t: jaccard_gains([1.], t), TypeError, 'errors must be a tensor of torch.float32 or torch.float64, got list'),
    (lambda x, t: lovasz_extension(x[:, 0, 0], t[:, 0, :1]), ValueError, 'got shapes [3, 4] and [3, 1]'),
    (lambda x, t: MixedLoss(), ValueError, 'at least one pair'),
    (lambda x, t: MixedLoss((nn.L1Loss(), 1.)), TypeError, 'got (L1Loss(), 1.0)'),
    (lambda x, t: MixedLoss(IoULoss()), TypeError, 'parts must be pairs of a loss of resnotes.losses and its weight, got IoULoss('),
    (lambda x, t: MixedLoss((IoULoss(), 1., 2.)), TypeError, 'parts must be pairs'),
    (lambda x, t: MixedLoss((IoULoss(), float('inf'))), ValueError, 'weight must be'),
])
def test_refusals(call, error, words):
    with pytest.raises(error) as failure: call(*batch())
    assert words in str(failure.value)


@every_loss
def test_infinite_logits_on_the_right_side_cost_nothing(loss):
    "And an infinite error is never multiplied by a weight of zero"
    logits, target = batch(4, 6, 6)
    right = torch.where(target[:, None], torch.inf, -torch.inf)
    value, grad = value_and_grad(loss, right, target)
    assert value == 0 and grad.abs().max() == 0
    mixed = torch.where(logits > .5, right, logits)
    value, grad = value_and_grad(loss, mixed, target)
    finite, _ = value_and_grad(loss, mixed.clamp(-1e4, 1e4), target)
    torch.testing.assert_close(value, finite)
    assert grad.isfinite().all()
    value, grad = value_and_grad(loss, -right, target)
    assert not value.isnan() and not grad.isnan().any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('over', ['image', 'batch'])
def test_a_hinge_at_infinity_is_infinite_and_nan_is_seen(over, dtype):
    logits, empty = torch.full((2, 3, 3), torch.inf, dtype=dtype), torch.zeros(2, 3, 3)
    assert lovasz_hinge(logits, empty, over) == torch.inf
    logits[1, 1, 1] = torch.nan
    assert lovasz_hinge(logits, empty, over).isnan() and lovasz_hinge(-logits, empty, over).isnan()


@every_loss
def test_a_wrong_value_is_seen_in_every_batch(loss):
    logits, target = batch()
    for _ in range(3): loss(logits, target.float())
    later = target.float()
    later[1, 2, 3] = .01
    with pytest.raises(ValueError, match='target must hold 0 and 1 only, got values from 0.0 to 1.0'): loss(logits, later)


@pytest.mark.parametrize('form', [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize('make', [lambda **kw: IoULoss(.62, 'image', **kw), lambda **kw: IoULoss(**kw), lambda **kw: LovaszLoss(**kw),
                                  lambda **kw: LovaszLoss('sigmoid', 'image', **kw), lambda **kw: BCEMaskLoss(**kw)])
def test_ignored_pixels_change_nothing(make, form):
    "The loss of an image is that of its other pixels alone, and no gradient reaches those ignored"
    logits, target = batch(3, 6, 6)
    gone = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1)) < .3
    gone[:, :, 0] = True
    gone[:, :, 1:] &= gone[:1, :, 1:]                                      # the same in all images, so that the rest is a batch
    gone[:] = gone[:1]
    rest = (logits[:, 0][~gone].reshape(3, 1, -1), target[~gone].reshape(3, 1, -1))
    codes = target.to(form).masked_fill(gone, 255)
    value, grad = value_and_grad(make(ignore_index=255), logits, codes)
    expected, rest_grad = value_and_grad(make(), *rest)
    torch.testing.assert_close(value, expected)
    assert not grad[:, 0][gone].any()
    torch.testing.assert_close(grad[:, 0][~gone].reshape(3, 1, -1), rest_grad)
    with pytest.raises(ValueError, match='target must hold 0 and 1 only'): make(ignore_index=7)(logits, codes)
    assert make(ignore_index=255)(logits, torch.full_like(codes, 255)) == 0


def class_batch(n=3, classes=4, h=5, w=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2*torch.randn(n, classes, h, w, generator=g), torch.randint(0, classes - 1, (n, h, w), generator=g)   # the last class is absent


CLASS_LOSSES = [ClassIoULoss(), ClassIoULoss(0., 'image', 'all'), LovaszSoftmaxLoss(), LovaszSoftmaxLoss('image'), LovaszSoftmaxLoss(classes='all'),
                CrossEntropyMaskLoss(), MixedLoss((CrossEntropyMaskLoss(), 1.), (LovaszSoftmaxLoss(), 1.))]


@pytest.mark.parametrize('loss', CLASS_LOSSES, ids=str)
def test_class_losses(loss):
    logits, codes = class_batch()
    value, grad = value_and_grad(loss, logits, codes)
    assert value.isfinite() and grad.isfinite().all() and value > 0
    for form in (codes[:, None], codes.byte(), codes.int()): assert loss(logits, form) == value
    torch.testing.assert_close(loss(logits.flip(0), codes.flip(0)), value)
    order = torch.tensor([2, 0, 3, 1])                                     # classes under other numbers
    torch.testing.assert_close(loss(logits[:, order], order.argsort()[codes]), value)
    assert loss.decodes(loss.activation(logits)).equal(logits.argmax(1))
    loss.reduction = 'none'
    try: assert loss(logits, codes).shape == (3,)
    finally: loss.reduction = 'mean'
    with pytest.raises(ValueError, match='target must hold codes from 0 to 3, got values from 0 to 4'): loss(logits, codes.masked_fill(codes == 1, 4))
    with pytest.raises(TypeError, match='target must hold whole numbers'): loss(logits, codes.float())
    with pytest.raises(ValueError, match='target must fit images of shape'): loss(logits, codes[:2])


def test_classes_ignored_and_absent():
    logits, codes = class_batch()
    gone = torch.zeros_like(codes, dtype=torch.bool)
    gone[:, 1:3] = True
    rest = logits[:, :, ~gone[0]].reshape(3, 4, 3, 4), codes[~gone].reshape(3, 3, 4)
    ways = [dict(over=over, classes=classes) for over, classes in itertools.product(('image', 'batch'), ('present', 'all'))]
    for make, which in ((ClassIoULoss, ways), (LovaszSoftmaxLoss, ways), (CrossEntropyMaskLoss, [{}])):
        for way in which:
            value, grad = value_and_grad(make(**way, ignore_index=-1), logits, codes.masked_fill(gone, -1))
            torch.testing.assert_close(value, make(**way)(*rest))
            assert not grad.movedim(1, -1)[gone].any()
    none = LovaszSoftmaxLoss(ignore_index=0)(logits, torch.zeros_like(codes))
    assert none == 0
    present, every = LovaszSoftmaxLoss()(logits, codes), LovaszSoftmaxLoss(classes='all')(logits, codes)
    largest = logits.softmax(1)[:, 3].max()                                # an absent class costs its largest probability
    torch.testing.assert_close(every, (3*present + largest)/4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_nearest_numbers_to_0_and_1_are_no_mask(dtype):
    "In one pixel of thousands, and the least number above zero, too"
    zero, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
    least = one.new_tensor(torch.finfo(dtype).smallest_normal)*torch.finfo(dtype).eps
    wrong = [one - torch.finfo(dtype).eps/2, one + torch.finfo(dtype).eps, least, -least, -one, 2*one, one*torch.inf, one*torch.nan]
    for value in (zero, -zero, one, *wrong):
        mask = (torch.rand(3, 50, 50) < .5).to(dtype)
        mask[1, 7, 8] = value
        if any(value is w for w in wrong):
            with pytest.raises(ValueError, match='target must hold 0 and 1 only'): IoULoss()(torch.zeros(3, 50, 50), mask)
        else: assert IoULoss()(torch.zeros(3, 50, 50), mask).isfinite()


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32])
@pytest.mark.parametrize('over', ['image', 'batch'])
def test_soft_iou_is_the_formula_in_double_precision(dtype, over):
    "Loss and gradient, whatever numbers the mask comes in, to the accuracy of a sum in single precision"
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(8, 1, 101, 101, generator=g), (torch.rand(8, 101, 101, generator=g) < .3).to(dtype)

    def formula(x, t):
        p, t = (v.flatten(1) if over == 'image' else v.reshape(1, -1) for v in (x.sigmoid(), t.double()))
        return 1 - (((p*t).sum(1) + 1)/((p + t - p*t).sum(1) + 1)).mean()
    value, grad = value_and_grad(IoULoss(over=over), logits, target)
    exact, slope = value_and_grad(formula, logits.double(), target)
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize('part, classes', [(IoULoss(), 1), (CrossEntropyMaskLoss(), 3)])
def test_a_mixture_of_one_loss_is_that_loss(part, classes):
    mixed, logits = MixedLoss((part, .5)), torch.randn(2, classes, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    assert torch.equal(mixed(logits, target), part(logits, target)/2)
    probs = part.activation(logits)
    assert torch.equal(mixed.activation(logits), probs) and torch.equal(mixed.decodes(probs), part.decodes(probs))


@pytest.mark.parametrize('kind', [torch.int8, torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize('wide', [False, True])
def test_the_extension_takes_no_target_but_true_and_false(kind, wide):
    errors, target = torch.rand(2, 8, dtype=torch.float64 if wide else torch.float32), torch.ones(2, 8, dtype=kind)
    with pytest.raises(TypeError, match=f'target must be a tensor of torch.bool, got {kind}'): lovasz_extension(errors, target)
    with pytest.raises(TypeError, match='target must be a tensor of torch.bool, got list'): lovasz_extension(errors, target.tolist())

def test_cross_entropy_takes_nothing_that_it_would_ignore():
    assert repr(CrossEntropyMaskLoss()) == 'CrossEntropyMaskLoss()'
    for ignored in (dict(over='image'), dict(classes='all')):
        with pytest.raises(TypeError, match='unexpected keyword argument'): CrossEntropyMaskLoss(**ignored)
    each = CrossEntropyMaskLoss('none', ignore_index=2)
    assert each.reduction == 'none' and each.ignore_index == 2


@pytest.mark.parametrize('over', ['image', 'batch'])
@pytest.mark.parametrize('classes', ['present', 'all'])
def test_class_losses_are_the_mean_over_classes_of_their_formula(over, classes):
    "IoU and extension of one class and one group of pixels at a time; class 1 is absent from the first image, class 3 from all, and the last image is of one"
    logits, codes = class_batch(h=3)
    logits, codes[0], codes[2] = logits.double(), codes[0].where(codes[0] != 1, 0), 2
    probs = logits.softmax(1)
    groups = [[0, 1, 2]] if over == 'batch' else [[0], [1], [2]]

    def expected(formula):
        each = [[formula(probs[g, c].flatten(), (codes[g] == c).flatten()) for c in range(4) if classes == 'all' or (codes[g] == c).any()] for g in groups]
        return torch.tensor([sum(e)/len(e) for e in each], dtype=torch.float64)
    def iou(p, t): return 1 - ((p*t).sum() + .3)/((p + t - p*t).sum() + .3)
    def extension(p, t): return float(exact_extension(torch.where(t, 1 - p, p).tolist(), t.tolist()))
    for loss, formula in ((ClassIoULoss(.3, over, classes), iou), (LovaszSoftmaxLoss(over, classes), extension)):
        torch.testing.assert_close(loss(logits, codes), expected(formula).mean())
        loss.reduction = 'none'
        torch.testing.assert_close(loss(logits, codes), expected(formula).expand(3))
    torch.testing.assert_close(lovasz_softmax(logits, codes, over, classes), expected(extension).mean())


@pytest.mark.parametrize('over', ['image', 'batch'])
def test_lovasz_losses_are_the_extension_at_their_errors(over):
    logits, target = batch(dtype=torch.float64)
    p = logits[:, 0].sigmoid()
    margins, misses = torch.where(target, 1 - logits[:, 0], 1 + logits[:, 0]).relu(), torch.where(target, 1 - p, p)
    for loss, errors in ((lovasz_hinge, margins), (lovasz_sigmoid, misses)):
        rows = zip(*(v.reshape(1 if over == 'batch' else 3, -1).tolist() for v in (errors, target)))
        each = [float(exact_extension(*row)) for row in rows]
        torch.testing.assert_close(loss(logits, target, over).item(), sum(each)/len(each))


def test_cross_entropies_are_those_of_pytorch():
    "An image is the mean of the pixels that count, even of a single one; one without any counts as 0"
    logits, target = batch(dtype=torch.float64)
    each = F.binary_cross_entropy_with_logits(logits[:, 0], target.double(), reduction='none').mean((1, 2))
    torch.testing.assert_close(BCEMaskLoss('none')(logits, target), each)
    logits, codes = class_batch()
    logits, codes = logits.repeat(2, 1, 1, 1)[:4], codes.repeat(2, 1, 1)[:4]
    codes[1, 0], codes[2], codes[3, 1:], codes[3, 0, 1:] = 9, 9, 9, 9
    each = torch.stack([F.cross_entropy(x[None], t[None], ignore_index=9) for x, t in zip(logits, codes)]).nan_to_num(0)
    torch.testing.assert_close(CrossEntropyMaskLoss('none', ignore_index=9)(logits, codes), each)


def test_a_mixture_is_the_weighted_sum():
    logits, target = batch()
    parts = BCEMaskLoss(), IoULoss(over='image'), LovaszLoss()
    mixed = MixedLoss(*zip(parts, (.5, 3., 0.)))
    torch.testing.assert_close(mixed(logits, target), .5*parts[0](logits, target) + 3*parts[1](logits, target))


def test_a_right_pixel_has_no_slope_however_it_is_computed():
    "Errors at and below 0, on both sides of the mask, in the quick way and in the plain one"
    for dtype in (torch.float32, torch.float64):
        for low in (0., -0., -1.):
            errors, target = torch.tensor([[2., low, low, 1.]], dtype=dtype, requires_grad=True), torch.tensor([[True, True, False, False]])
            value = lovasz_extension(errors, target)
            value.sum().backward()
            torch.testing.assert_close((value.item(), errors.grad.tolist()), (2/2 + 1/6, [[1/2, 0., 0., 1/6]]))   # J of {0} and of {0, 3} is 1/2 and 2/3


@pytest.mark.parametrize('dtype, quick', [(torch.float32, True), (torch.float64, False)])
def test_single_precision_takes_the_quick_way_on_a_processor(dtype, quick, monkeypatch):
    errors, target, ways = torch.rand(2, 6, dtype=dtype), torch.rand(2, 6) < .5, []
    for name in ('jaccard_gains', '_packed_gains'):
        def way(*args, name=name, gains=getattr(losses, name)): return ways.append(name) or gains(*args)
        monkeypatch.setattr(losses, name, way)
    lovasz_extension(errors, target)
    assert ways == ['_packed_gains' if quick else 'jaccard_gains']
    for e, t in ((errors[None], target[None]), (errors[0], target[0]), (errors, target[:, :3])):
        with pytest.raises(ValueError, match='errors and target must be'): lovasz_extension(e, t)


@pytest.mark.parametrize('loss, make, later', [(IoULoss(), batch, False), (LovaszLoss(), batch, False), (ClassIoULoss(), class_batch, False),
                                               (lovasz_hinge, batch, True), (lovasz_sigmoid, batch, True), (lovasz_softmax, class_batch, True)])
def test_a_module_waits_for_its_first_batch_and_a_function_for_every_one(loss, make, later, monkeypatch):
    waits = []
    for name in ('check_mask', 'check_codes'):
        def check(*args, check=getattr(losses, name), **kwargs):
            waits.append(inspect.signature(check).bind(*args, **kwargs).arguments['wait'])
            return check(*args, **kwargs)
        monkeypatch.setattr(losses, name, check)
    for _ in range(3): loss(*make())
    assert waits == [True, later, later]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_probabilities_end_at_0_and_1(dtype):
    edge, target = torch.tensor([0., 1.], dtype=dtype), torch.tensor([[[False, True]]])
    assert soft_iou(edge.reshape(1, 1, 2), target) == 1
    for beyond in (torch.nextafter(edge, edge - 1) * torch.tensor([1, 0]), torch.nextafter(edge, edge + 1)):
        with pytest.raises(ValueError, match='probs must be fractions in'): soft_iou(beyond.reshape(1, 1, 2), target)


@pytest.mark.parametrize('target, ignored', [(torch.tensor([[[1., 255.5]]]), 255), (torch.tensor([[[1., .5]]]), 0), (torch.tensor([[[1, 255]]], dtype=torch.uint8), -1)],
                         ids=['255.5 is not 255', '0.5 is not 0', 'the byte 255 is not -1'])
def test_what_is_ignored_is_that_very_number(target, ignored):
    for loss in (IoULoss(ignore_index=ignored), lambda x, t: lovasz_hinge(x, t, ignore_index=ignored)):
        with pytest.raises(ValueError, match='target must hold 0 and 1 only'): loss(torch.zeros(1, 1, 2), target)


@pytest.mark.parametrize('loss', [ClassIoULoss(), CrossEntropyMaskLoss()], ids=str)
def test_two_classes_are_enough_and_images_may_be_of_any_size(loss):
    for classes, h, w in itertools.product((2, 3), (1, 2), (1, 2)): assert loss(torch.zeros(1, classes, h, w), torch.zeros(1, h, w, dtype=torch.long)) > 0
    for logits in (torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, 2, 2), [1.]):
        with pytest.raises(ValueError, match=r'logits must be \[N, C, H, W\] of two classes or more'): loss(logits, torch.zeros(1, 2, 2, dtype=torch.long))
