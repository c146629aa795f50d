"The practitioner's door: its names, and what three calls do for a network that does not train"
import torch
import torch.nn.functional as F
from torch import nn

import resnotes.diagnose
from resnotes import branches, rate, report, starts
from resnotes.blocks import StrictBlock
from resnotes.diagnose import audit, initialize, rehearse, residual_branches, rules

def test_the_names_are_those_of_their_chapters():
    assert audit is report.audit and initialize is starts.initialize and rules is starts.rules
    assert residual_branches is branches.residual_branches and rehearse is rate.rehearse

def test_nothing_else_is_in_it():
    names = {name for name in vars(resnotes.diagnose) if not name.startswith('_')}
    assert names == {'audit', 'initialize', 'rehearse', 'residual_branches', 'rules'}
    assert resnotes.diagnose.__all__ == []     # each name belongs to the module that defines it

def test_three_calls():
    torch.manual_seed(0)
    blocks = [StrictBlock(8, norm_layer=None) for _ in range(30)]
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    x, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    assert initialize(net, rule='kaiming_normal').title == 'he_normal'
    assert residual_branches(net, x).depth == 30 and any('grows' in said for said in audit(net, x, y, loss=F.cross_entropy).findings)
    initialize(net, x)
    assert audit(net, x, y, loss=F.cross_entropy).findings == []
