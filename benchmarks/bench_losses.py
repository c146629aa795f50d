"One training step's loss and gradient on 32 masks of 101 x 101: soft IoU and Lovász beside cross-entropy and a loop over images."
import torch
from torch.nn import functional as F
from resnotes.losses import IoULoss, LovaszLoss
from timing import report

torch.set_num_threads(1)
torch.manual_seed(0)
logits = torch.randn(32, 1, 101, 101, requires_grad=True)
target = torch.rand(32, 101, 101) < .3

def step(loss): return lambda: loss(logits, target).backward()
def bce(x, t): return F.binary_cross_entropy_with_logits(x, t[:,None].float())

def plain_iou(x, t):
    "Soft IoU per image, written as its formula stands"
    p, t = x.sigmoid().flatten(1), t.flatten(1).float()
    return (1 - ((p*t).sum(1) + 1)/((p + t - p*t).sum(1) + 1)).mean()

def lovasz_loop(x, t):
    "Lovász hinge image by image, with differences of the Jaccard loss"
    total = 0
    for x, t in zip(x.flatten(1), t.flatten(1).float()):
        errors, order = (1 - x*(2*t - 1)).sort(descending=True)
        t = t[order]
        jaccard = 1 - (t.sum() - t.cumsum(0))/(t.sum() + (1 - t).cumsum(0))
        total = total + (errors.relu()*torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])).sum()
    return total/len(logits)

torch.testing.assert_close(LovaszLoss()(logits, target), lovasz_loop(logits, target), rtol=1e-4, atol=0)
report('IoULoss / BCE', step(IoULoss()), step(bce))
report('IoULoss / the plain formula', step(IoULoss()), step(plain_iou))
report('LovaszLoss / BCE', step(LovaszLoss()), step(bce))
report('LovaszLoss / a loop over images', step(LovaszLoss()), step(lovasz_loop))
report('LovaszLoss over the batch / over images', step(LovaszLoss(over='batch')), step(LovaszLoss()))
