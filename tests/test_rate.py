"The rehearsal: edges that are known, states left as found, plateaus, Learners"
import math, random, time
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnotes.rate import Rehearsal, _runs, rehearse


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def bowl(curvatures):
    "A quadratic with these curvatures"
    layer = nn.Linear(len(curvatures), 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer, [(torch.diag(torch.tensor(curvatures).sqrt()), torch.zeros(len(curvatures), 1))], lambda out, y: out.square().sum()/2

@pytest.mark.parametrize('curvatures', [[1., 9.], [4., 4.], [.1, 100.]])
def test_the_edge_of_a_parabola(curvatures):
    model, batches, loss = bowl(curvatures)
    r = rehearse(model, batches, loss, torch.optim.SGD, steps=80, halvings=9)
    assert r.edge == pytest.approx(2/max(curvatures), rel=.03) and 0 < r.rate <= r.edge/2 and not r.plateau

def blobs(n=256, classes=4):
    centers, y = torch.randn(classes, 8), torch.arange(n)%classes
    x = centers[y] + .5*torch.randn(n, 8)
    return list(zip(x.split(32), y.split(32)))

def net(): return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(.1), nn.Linear(16, 4))

@pytest.mark.parametrize('optimizer', [torch.optim.SGD, partial(torch.optim.SGD, momentum=.9), torch.optim.Adam])
def test_all_is_left_as_found(optimizer):
    model, batches = net(), blobs()
    before, states = {k: v.clone() for k, v in model.state_dict().items()}, (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    r = rehearse(model, batches, F.cross_entropy, optimizer, steps=6, halvings=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1] and np.random.get_state()[1].tolist() == states[2]
    assert isinstance(r, Rehearsal) and r.edge > 0 and r.seconds > 0 and all(run.tame for run in r.runs if run.lr <= r.edge)
    assert [run.lr for run in r.runs] == sorted(run.lr for run in r.runs) and not r.runs[-1].tame

def test_a_loader_is_not_used_up():
    data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.arange(64)%4)
    loader, model = torch.utils.data.DataLoader(data, 16, shuffle=True), net()
    torch.manual_seed(5)
    first = next(iter(loader))[1]
    torch.manual_seed(5)
    rehearse(model, loader, F.cross_entropy, torch.optim.Adam, steps=4, halvings=1)
    assert torch.equal(first, next(iter(loader))[1])

def test_noise_is_a_plateau_and_structure_is_none():
    batches = blobs()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    real = rehearse(model, batches, F.cross_entropy, torch.optim.Adam, halvings=2)
    noise = rehearse(model, [(torch.randn_like(x), y) for x, y in batches*3], F.cross_entropy, torch.optim.Adam, halvings=1)
    assert not real.plateau and 'begin with' in real.sentence and noise.plateau and 'no rate measured here means anything' in repr(noise)

def test_what_never_is_finite():
    model = nn.Linear(8, 4)
    r = rehearse(model, blobs(), lambda out, y: F.cross_entropy(out, y)*math.nan, torch.optim.SGD, steps=3, halvings=1)
    assert r.edge == r.rate == 0 and 'no rate was tame' in r.sentence

def test_clipping_moves_the_edge():
    model, batches, loss = bowl([1., 9.])
    free, clipped = (rehearse(model, batches, loss, torch.optim.SGD, steps=30, halvings=4, clip=c) for c in (None, .01))
    assert clipped.edge > 3*free.edge

def test_warm_up_is_part_of_the_run():
    model, batches, loss = bowl([1., 9.])
    assert rehearse(model, batches, loss, torch.optim.SGD, steps=10, halvings=4, warmup=40).edge > 1.5*rehearse(model, batches, loss, torch.optim.SGD, steps=10, halvings=4).edge

def test_a_learner_brings_its_own():
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from resnotes.data import digits
    learn = Learner(digits(), nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), loss_func=CrossEntropyLossFlat())
    state = learn.dls.train.rng.getstate()
    r = rehearse(learn, steps=6, halvings=1)
    assert r.edge > 0 and not r.plateau and learn.dls.train.rng.getstate() == state
    few = list(learn.dls.train)[:3]
    held = rehearse(learn, few, steps=6, halvings=1)
    inner = rehearse(learn.model, few, learn.loss_func, learn.opt_func, steps=6, halvings=1)
    assert [run.losses for run in held.runs] == [run.losses for run in inner.runs], 'a list of its batches is as good'

@pytest.mark.parametrize('call, error, text', [
    (lambda: rehearse(net()), TypeError, 'batches must be given'), (lambda: rehearse(net(), []), TypeError, 'loss must be given'),
    (lambda: rehearse(net(), [], F.cross_entropy, torch.optim.SGD), ValueError, 'at least one batch'),
    (lambda: rehearse(3, [1], F.cross_entropy, torch.optim.SGD), TypeError, 'model must be an nn.Module or a Learner, got int'),
    (lambda: rehearse(net(), blobs(), F.cross_entropy, torch.optim.SGD, steps=1), ValueError, 'steps'),
    (lambda: rehearse(net(), blobs(), F.cross_entropy, torch.optim.SGD, first=0), ValueError, 'first')])
def test_refusals(call, error, text):
    with pytest.raises(error, match=text): call()

def test_picture():
    import matplotlib.pyplot as plt
    assert len(rehearse(net(), blobs(), F.cross_entropy, torch.optim.SGD, steps=4, halvings=1).plot().lines) > 2
    plt.close('all')

def test_runs_are_longer_where_none_has_begun_to_learn():
    "Noise is not learned in three times the steps; a parabola is in the first"
    torch.manual_seed(0)
    model, target = nn.Linear(8, 4), torch.arange(32)%4
    noise = [(torch.randn(32, 8), target) for _ in range(6)]
    r = rehearse(model, noise, F.cross_entropy, torch.optim.SGD, steps=6, halvings=1)
    assert max(len(run.losses) for run in r.runs) == 18
    exact = [(noise[0][0], noise[0][0] @ torch.randn(8, 4))]
    r = rehearse(model, exact, F.mse_loss, torch.optim.SGD, steps=20, halvings=2)
    assert max(len(run.losses) for run in r.runs) == 20 and not r.plateau

def given_losses(*values):
    "A model whose losses are the targets, whatever its weights are"
    batches = [(torch.zeros(1, 2), torch.tensor(float(v))) for v in values]
    return nn.Linear(2, 1), batches, lambda out, y: y + 0*out.sum()

def test_the_end_of_a_run_is_the_mean_of_its_last_third():
    "No rate begins to learn, so that the runs are three times as long"
    model, batches, loss = given_losses(2, 1)
    r = rehearse(model, batches, loss, torch.optim.SGD, steps=3, halvings=1)
    assert r.start == pytest.approx(5/3) and r.shuffled == pytest.approx(5/3) and r.plateau
    assert all(run.losses == [2, 1, 2]*3 and run.end == pytest.approx(5/3) for run in r.runs)

def test_a_loss_that_does_not_move_is_tame_at_a_ceiling_of_one():
    assert all(run.tame for run in rehearse(*given_losses(3), torch.optim.SGD, steps=3, halvings=1, ceiling=1.).runs)

def test_two_steps_are_one_step_and_its_loss():
    "Its loss is (1 - lr)², which is nothing at a rate of one, and from a half on most of that is lost again"
    began = time.perf_counter()
    r = rehearse(*bowl([1.]), torch.optim.SGD, steps=2, halvings=12)
    assert r.edge == pytest.approx(1 + .5**.5, rel=1e-3) and r.seconds <= time.perf_counter() - began
    assert all(run.end == pytest.approx(run.losses[-1]) for run in r.runs if run.tame)

@pytest.mark.parametrize('curvatures', [[1.], [4.], [1., 9.]])
def test_one_begins_with_the_best_rate_or_half_of_the_edge(curvatures):
    r = rehearse(*bowl(curvatures), torch.optim.SGD)
    best = min((run for run in r.runs if run.tame), key=lambda run: run.end)
    assert r.rate == min(best.lr, r.edge/2) and r.edge == max(run.lr for run in r.runs if run.tame)
    tens = sum(abs(math.log10(run.lr) - round(math.log10(run.lr))) < 1e-9 for run in r.runs)
    assert len(r.runs) == tens + 5 and any(run.lr == .01 for run in r.runs)

@pytest.mark.parametrize('slow, fast, edge', [(.5, .76, .01), (.5, .74, .1), (.85, .97, .1), (.79, .9, .01)])
def test_a_rate_that_undoes_what_a_slower_one_learned_is_not_tame(slow, fast, edge):
    "Its units died, or most of them: it keeps less than half of what a slower run learned, which is a fifth or more"
    ends = {.01: slow, .1: fast, 1.: 9.}
    found, best, runs = _runs(lambda lr, top: [ends[round(lr, 9)]]*6, [1.]*6, 1.25, .01, 0)
    assert found == pytest.approx(edge) and best.end == slow and len(runs) == 2 + (edge > .05)

def test_the_last_loss_is_judged_too(): assert _runs(lambda lr, top: [1., 1., 9.], [1.]*3, 1.25, .01, 1)[:2] == (0, None)

def test_the_fastest_tame_rate_may_be_the_best():
    found, best, _ = _runs(lambda lr, top: [9. if lr > .5 else 1 - lr]*6, [1.]*6, 1.25, .01, 0)
    assert found == best.lr == pytest.approx(.1)

def test_a_little_learned_is_no_plateau():
    "Some of the labels can be learned: the loss ends between half of the start and that of strangers"
    x, y = torch.randn(512, 8), torch.randint(4, (512,))
    x[y == 0, 0] += 3
    r = rehearse(nn.Linear(8, 4), list(zip(x.split(64), y.split(64))), F.cross_entropy, torch.optim.Adam, halvings=2)
    assert .5*r.start < min(run.end for run in r.runs if run.tame) < .9*r.shuffled and not r.plateau

class Deadly(torch.optim.SGD):
    "Above a rate of .2 the first step takes all weights"
    def step(self):
        super().step()
        for group in self.param_groups:
            for p in group['params'] if group['lr'] > .2 else (): p.data.zero_()

@pytest.mark.parametrize('loud', [1, 8])
def test_a_net_that_dies_quietly_is_not_tame(loud):
    "Its loss falls to that of guessing, which is below the first one where the start is loud"
    model = net()
    with torch.no_grad(): model[-1].weight.mul_(loud)
    r = rehearse(model, blobs(), F.cross_entropy, Deadly, halvings=4)
    dead = [run for run in r.runs if run.lr > .2]
    assert .1 < r.edge <= .2 and dead and not any(run.tame for run in dead)
    assert all(run.end == pytest.approx(math.log(4), abs=.01) for run in dead) and (r.start > 1.2*math.log(4)) == (loud > 1)
