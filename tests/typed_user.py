"A user's script over the public interface: `test_types.py` runs it where a folder of images is, and has it checked"
import torch
from torch import nn

from resnotes.blocks import BasicBlock, Bottleneck, Conv, Residual, StrictBlock, WideBlock, make_shortcut
from resnotes.data import mask_pairs, masks
from resnotes.diagnose import audit, initialize, rehearse, residual_branches, rules
from resnotes.init import fans, he_normal, init_layers
from resnotes.lab import run_trial, sweep
from resnotes.learner import segmenter
from resnotes.losses import ClassIoULoss, IoULoss, LovaszLoss, lovasz_hinge, soft_iou
from resnotes.metrics import class_iou, confusion, iou, mask_metric, mean_iou, tgs_score
from resnotes.networks import build, config
from resnotes.resnet import ResNet, ResNetConfig
from resnotes.samplers import upsampler
from resnotes.segment import load_weights, predict_folder, save_weights
from resnotes.trial import Trial
from resnotes.unet import StrictUNet, UNetConfig, costs, main_path

x, y = torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 1, 32, 32))
net = build('resnet20')
for rule in rules:
    if rule.startswith('glorot'): initialize(net, rule=rule)
changes = initialize(net, x, rule='depth_scaled_normal', c=.5, rest='he_normal', only=lambda name: 'head' not in name)
print(changes.changed, changes.table()[0], [c.parameter for c in changes.left])
report, found = audit(net, x), residual_branches(net, x)
print(report.gradient_ratio, report.findings, found.depth, [b.last for b in found], found[0].weights)
print(report.to_frame(), report.plot(), report.save('report.html').name)
print(init_layers(net, 'kaiming_uniform'), init_layers(net, he_normal, mode='fan_out'))
rate = rehearse(net, [(x, torch.tensor([0, 1]))]*2, nn.CrossEntropyLoss(), torch.optim.SGD, steps=2, halvings=1)
print(rate.rate, rate.sentence, rate.runs[0].losses, fans(nn.Linear(3, 4)).fan_in, he_normal(nn.Linear(3, 4), 'fan_out').std())
unit = Residual([Conv(16, 16), Conv(16, 16)], order='preact', shortcut='identity')
print(unit(torch.randn(2, 16, 8, 8)).shape, unit.n_parameters + 1, unit.multiply_adds(8, 8) + 1, unit.out_size(8, 8)[0])
print(BasicBlock(16, 16), Bottleneck(16, 4, 16, stride_in='1x1'), WideBlock(16, 16), StrictBlock(16), make_shortcut('zero_pad', 16, 32, 2))
resnet = ResNet(ResNetConfig((1, 1, 1), 16, order='preact', shortcut='zero_pad'))
print(resnet.n_layers + 1, resnet.n_parameters + 1, resnet.multiply_adds() + 1, resnet.units[0].convs, resnet.config.channels[0] + 1)
unet = StrictUNet(UNetConfig((1, 1, 1), width=4, placement='blocks', down='conv3', up='nearest', in_channels=3))
print(unet(x).shape, unet.config.levels + 1, unet.config.side + 1, upsampler('nearest', 3, 3)(x).shape, config('strict_unet48').in_channels)
print(sum(part.multiply_adds for part in costs(unet)), [step.kind for step in main_path(unet)])
loss = IoULoss(over='image')(x[:, :1], y) + lovasz_hinge(x[:, :1], y, over='image') + LovaszLoss('sigmoid')(x[:, :1], y)
print(loss.item(), ClassIoULoss(classes='all')(x, y).item(), soft_iou(x[:, :1].sigmoid(), y).mean().item())
print(iou(y, y, over='batch').item(), mean_iou(confusion(y, y, 2)).item(), class_iou(confusion(y, y, 2), of=1).item())
dls = masks('folder', valid=.25, missing='skip', normalize='set', channels=3, bs=2)
learn = segmenter(dls, unet, loss=IoULoss(), metrics=[mask_metric(tgs_score)])
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
predicted = predict_folder(load_weights(save_weights(learn, 'w.safetensors')), 'folder/images', 'out', cut=.5)
print([mask.float().mean().item() for mask in predicted.values()], [image.name for image, _ in mask_pairs('folder')])
trial = Trial('mine', 'he', 'smoke', 0, 'digits', 'tower1', 1, .1, init='he_normal', optimizer='adam', schedule='one_cycle')
record, records = run_trial(trial), sweep([trial], backend='loky', n_jobs=1)
print(trial.id.upper(), record and sorted(record), [r['final_valid_loss'] for r in records])
