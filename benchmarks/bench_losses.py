"""A training step's loss and gradient beside the peers, whose algorithms are written out here as published.

Masks of 32 images of 101 x 101 unless said otherwise. Trained: 16 % of the pixels have a hinge error, as after training."""
import torch
from torch.nn import functional as F
from resnotes.losses import IoULoss, LovaszLoss, LovaszSoftmaxLoss
from timing import report

torch.set_num_threads(1)
torch.manual_seed(0)
target = torch.rand(32, 101, 101) < .3
noise = torch.randn(32, 1, 101, 101)
untrained = noise.clone().requires_grad_()
trained = (noise + 2*(2*target[:,None].float() - 1)).requires_grad_()
codes = torch.randint(0, 8, (4, 256, 256))
scores = torch.randn(4, 8, 256, 256, requires_grad=True)

def step(loss, logits=untrained, truth=target): return lambda: loss(logits, truth).backward()
def bce(x, t): return F.binary_cross_entropy_with_logits(x, t[:,None].float())

def plain_iou(x, t):
    "Soft IoU per image, written as its formula stands"
    p, t = x.sigmoid().flatten(1), t.flatten(1).float()
    return (1 - ((p*t).sum(1) + 1)/((p + t - p*t).sum(1) + 1)).mean()

def smp_iou(x, t, eps=1e-7):
    "The Jaccard loss of segmentation_models_pytorch for one class, over the batch"
    p, t = F.logsigmoid(x).exp().flatten(2), t[:,None].flatten(2).type_as(x)
    intersection = (p*t).sum((0,2))
    union = (p + t).sum((0,2)) - intersection
    loss = 1 - intersection/union.clamp_min(eps)
    return (loss*(t.sum((0,2)) > 0)).mean()

def monai_iou(x, t, smooth=1e-5):
    "The Dice loss of MONAI with `sigmoid` and `jaccard`, per image"
    p, t = x.sigmoid(), t[:,None].to(x.dtype)
    intersection = (t*p).sum((2,3))
    denominator = 2*(t.sum((2,3)) + p.sum((2,3)) - intersection)
    return (1 - (2*intersection + smooth)/(denominator + smooth)).mean()

def gradient(t):
    "The authors' gradient of the Lovász extension with respect to sorted errors"
    jaccard = 1 - (t.sum() - t.cumsum(0))/(t.sum() + (1 - t).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])

def lovasz_loop(x, t):
    "The authors' Lovász hinge, image by image"
    total = 0
    for each, t in zip(x.flatten(1), t.flatten(1).float()):
        errors, order = (1 - each*(2*t - 1)).sort(descending=True)
        total = total + errors.relu() @ gradient(t[order])
    return total/len(x)

def softmax_loop(x, t):
    "The authors' Lovász softmax over the batch, class by class, over the classes present"
    p, t, losses = x.softmax(1).movedim(1, -1).flatten(0, -2), t.flatten(), []
    for c in range(p.shape[1]):
        truth = (t == c).float()
        if truth.sum() == 0: continue
        errors, order = (truth - p[:,c]).abs().sort(descending=True)
        losses.append(errors @ gradient(truth[order]))
    return torch.stack(losses).mean()

image = LovaszLoss(over='image')
for logits in (untrained, trained): torch.testing.assert_close(image(logits, target), lovasz_loop(logits, target), rtol=1e-4, atol=0)
torch.testing.assert_close(LovaszSoftmaxLoss()(scores, codes), softmax_loop(scores, codes), rtol=1e-3, atol=0)
active = [(1 + x*(1 - 2*target[:,None].float()) > 0).float().mean().item() for x in (untrained, trained)]
print(f'pixels with a hinge error: untrained {active[0]:.0%}, trained {active[1]:.0%}')
report('IoULoss / BCE', step(IoULoss()), step(bce))
report('IoULoss / the plain formula', step(IoULoss()), step(plain_iou))
report('IoULoss / segmentation_models_pytorch', step(IoULoss()), step(smp_iou))
report('IoULoss / MONAI', step(IoULoss(over='image')), step(monai_iou))
report('LovaszLoss per image / its authors, untrained', step(image), step(lovasz_loop))
report('LovaszLoss per image / its authors, trained', step(image, trained), step(lovasz_loop, trained))
report('LovaszLoss per image / BCE, trained', step(image, trained), step(bce, trained))
report('LovaszLoss over the batch / over images, untrained', step(LovaszLoss()), step(image))
report('LovaszSoftmaxLoss / its authors, 4 x 8 classes x 256 x 256', step(LovaszSoftmaxLoss(), scores, codes), step(softmax_loop, scores, codes), runs=5)
