"""A loss and its gradient, and a score, beside the peers and beside the algorithms as their authors published them.

Masks of 32 images of 101 x 101 unless said otherwise. Trained: 16 % of the pixels have a hinge error, as after training."""
import numpy as np
import torch
from torch.nn import functional as F

from resnotes.checks import check_mask
from resnotes.losses import IoULoss, LovaszLoss, LovaszSoftmaxLoss
from resnotes.metrics import _count, tgs_score
from timing import Pair, row


def masks_and_logits(smoke, trained=False, device='cpu'):
    "A third of the pixels is object; logits of noise, or of noise around the truth"
    shape = (2, 1, 21, 21) if smoke else (32, 1, 101, 101)
    target = torch.rand(shape) < .3
    logits = torch.randn(shape) + trained*2*(2*target.float() - 1)
    return logits.to(device).requires_grad_(), target.to(device)


def step(loss, logits, target): return lambda: loss(logits, target).backward()


def same(ours, theirs, logits, *targets):
    "The step of a peer whose loss is ours, gradient included"
    target = targets[-1]
    (a,), (b,) = (torch.autograd.grad(f(logits, t), logits)
                  for f, t in ((ours, targets[0]), (theirs, target)))
    torch.testing.assert_close(theirs(logits, target), ours(logits, targets[0]), rtol=1e-3, atol=1e-6)
    assert (a - b).norm() < .01*a.norm()   # published, a gradient is a difference of rounded sums
    return step(theirs, logits, target)


def gradient(t):
    "The authors' gradient of the Lovász extension with respect to sorted errors"
    jaccard = 1 - (t.sum() - t.cumsum(0))/(t.sum() + (1 - t).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def authors_hinge(x, t):
    "The authors' Lovász hinge, image by image"
    total = 0
    for each, t in zip(x.flatten(1), t.flatten(1).float()):
        errors, order = (1 - each*(2*t - 1)).sort(descending=True)
        total = total + errors.relu() @ gradient(t[order])
    return total/len(x)


def authors_softmax(x, t):
    "The authors' Lovász softmax over the batch, class by class, over the classes present"
    p, t, losses = x.softmax(1).movedim(1, -1).flatten(0, -2), t.flatten(), []
    for c in range(p.shape[1]):
        truth = (t == c).float()
        if truth.sum() == 0: continue
        errors, order = (truth - p[:,c]).abs().sort(descending=True)
        losses.append(errors @ gradient(truth[order]))
    return torch.stack(losses).mean()


def hinges(smoke, trained, device='cpu'):
    "The hinge per image beside its authors' and two libraries'"
    ours, (x, t) = LovaszLoss(over='image'), masks_and_logits(smoke, trained, device)
    wrong = f'{((1 + x*(1 - 2*t.float())) > 0).float().mean():.0%} of the pixels have an error'
    go = step(ours, x, t)
    def beside(name, *theirs): return Pair(name, go, *theirs, ours_is=wrong, profile='functions')
    yield beside('its authors', same(ours, authors_hinge, x, t))
    def smp(package):
        return same(ours, package.losses.LovaszLoss('binary', per_image=True), x, t, t.float())
    yield beside('segmentation_models_pytorch', smp, 'segmentation_models_pytorch')
    def kornia(package):
        def theirs(x, t): return package.losses.lovasz_hinge_loss(x, t[:,0].long())
        return same(ours, theirs, x, t)
    yield beside('kornia', kornia, 'kornia')


@row('Lovász hinge of a trained net', reach=.2)
def lovasz_trained(smoke): yield from hinges(smoke, True)


@row('Lovász hinge of an untrained net', reach=.5)
def lovasz_untrained(smoke): yield from hinges(smoke, False)


@row('Lovász softmax, 8 classes', reach=1/3)
def lovasz_classes(smoke):
    "Four images of 256 x 256"
    side, ours, each = 16 if smoke else 256, LovaszSoftmaxLoss(), LovaszSoftmaxLoss('image', 'all')
    x, t = torch.randn(4, 8, side, side, requires_grad=True), torch.randint(0, 8, (4, side, side))
    go = step(ours, x, t)
    yield Pair('its authors', go, same(ours, authors_softmax, x, t), profile='functions')
    def smp(package): return same(ours, package.losses.LovaszLoss('multiclass'), x, t)
    yield Pair('segmentation_models_pytorch', go, smp, 'segmentation_models_pytorch', profile='functions')
    def kornia(package): return same(each, package.losses.lovasz_softmax_loss, x, t)
    yield Pair('kornia', step(each, x, t), kornia, 'kornia', ours_is='mean over images',
               profile='functions')


@row('soft IoU', reach=.5)
def soft_iou(smoke):
    "Masks as bytes, as the loaders of this book give them, and as floats; ours looks at the values, they do not"
    (x, t), ours = masks_and_logits(smoke), IoULoss(over='batch')
    for name, target in {'masks of bytes': t.byte(), 'masks of floats': t.float()}.items():
        go = step(ours, x, target)
        def smp(package):
            theirs = package.losses.JaccardLoss('binary', smooth=1.)
            return same(ours, theirs, x, target)
        def monai(package):
            loss = package.losses.DiceLoss(sigmoid=True, jaccard=True, batch=True)
            return step(loss, x, target)
        yield Pair('segmentation_models_pytorch', go, smp, 'segmentation_models_pytorch', ours_is=name)
        yield Pair('MONAI', go, monai, 'monai', ours_is=name)


@row('sigmoid, its sum and a look at the mask, forward and backward')
def soft_iou_floor(smoke):
    "What a soft IoU made of PyTorch's operators cannot go below, if it looks at the values"
    x, t = masks_and_logits(smoke)
    for name, target in {'masks of bytes': t.byte(), 'masks of floats': t.float()}.items():
        def ours(x, target):
            check_mask(like=x, target=target)
            return x.sigmoid().sum()
        def monai(package): return step(package.losses.DiceLoss(sigmoid=True, jaccard=True, batch=True), x, target)
        yield Pair('soft IoU of MONAI', step(ours, x, target), monai, 'monai', ours_is=name)


@row('truth values by way of bytes, 512 masks')
def by_bytes(smoke):
    "What makes the loss and the score faster, each beside the plain way"
    truth = torch.rand(8 if smoke else 512, 10201) < .3
    numbers = truth.float()
    torch.testing.assert_close(_count(truth), truth.sum(1))
    yield Pair('mask.sum(1)', lambda: _count(truth), lambda: truth.sum(1), ours_is='counted')
    yield Pair('mask.float()', lambda: truth.view(torch.uint8).float(), lambda: truth.float(),
               ours_is='made numbers')
    yield Pair('((mask == 0) | (mask == 1)).all()', lambda: check_mask(mask=numbers[:,None]),
               lambda: ((numbers == 0) | (numbers == 1)).all(), ours_is='floats looked at')


def bce(x, t): return F.binary_cross_entropy_with_logits(x, t.float())


@row('a loss of this book')
def losses_beside_bce(smoke):
    "For a trained net"
    x, t = masks_and_logits(smoke, True)
    for ours in (IoULoss(), LovaszLoss(over='image'), LovaszLoss()):
        name = f'{type(ours).__name__}({ours.extra_repr()})'
        yield Pair("PyTorch's binary cross-entropy", step(ours, x, t), step(bce, x, t), ours_is=name)


def usual_score(pred, target):
    "The score as the competition's kernels have it: a histogram for each image, a loop over thresholds"
    total = 0.
    for p, t in zip(pred.numpy(), target.numpy()):
        if t.sum() == 0 or p.sum() == 0:
            total += float(t.sum() == p.sum())
            continue
        bins = ([0, .5, 1], [0, .5, 1])
        counts = np.histogram2d(t.flatten(), p.flatten(), bins=bins)[0]
        area_t = np.histogram(t, bins=[0, .5, 1])[0][:,None]
        area_p = np.histogram(p, bins=[0, .5, 1])[0][None]
        iou = (counts/(area_t + area_p - counts + 1e-12))[1:,1:]
        found = []
        for threshold in np.arange(.5, 1, .05):
            matches = iou > threshold
            tp, fp, fn = (matches.sum(1) == 1).sum(), (matches.sum(0) == 0).sum(), (matches.sum(1) == 0).sum()
            found.append(tp/max(tp + fp + fn, 1))
        total += np.mean(found)
    return total/len(pred)


@row('score at ten thresholds, 512 masks', reach=.02)
def score(smoke):
    n, side = (8, 21) if smoke else (512, 101)
    target = torch.rand(n, side, side) < .3
    pred = target ^ (torch.rand(n, side, side) < .3*torch.rand(n, 1, 1))
    target[:n//4] = False
    numbers = pred.float(), target.float()
    assert abs(usual_score(*numbers) - tgs_score(pred, target).item()) < 1e-9
    yield Pair("the competition's usual kernel", lambda: tgs_score(pred, target),
               lambda: usual_score(*numbers))
