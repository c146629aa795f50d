"The rehearsal: edges that are known, states left as found, plateaus, Learners"
import math, random, time
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnotes.rate import Rehearsal, _exchanged, _level, _runs, rehearse


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

def test_a_learner_of_torch_s_own_loaders():
    "They do not say how many of their tensors are inputs: one"
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    loaders = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 8), torch.arange(64)%4), 16) for _ in range(2)]
    learn = Learner(DataLoaders(*loaders), net(), loss_func=F.cross_entropy)
    assert rehearse(learn, steps=4, halvings=1).edge > 0

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
    assert r.start == pytest.approx(14/9) and r.shuffled == pytest.approx(5/3) and r.plateau
    assert all(run.losses == [2, 1, 2, 1, 2, 1, 2, 1, 2] and run.end == pytest.approx(5/3) for run in r.runs)

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
    assert len(r.runs) == tens + 5 and {.0001, .01} <= {run.lr for run in r.runs}

def judged(run, start, first=.01, halvings=0, guess=1., steps=6):
    "The verdict on given losses, where a run that learns nothing from targets comes to the guess"
    def exchanged(lr): return [start] + [guess]*(steps - 1)
    return _runs(run, exchanged, [start]*steps, 1.25, first, halvings)

@pytest.mark.parametrize('slow, fast, edge', [(.5, .76, .01), (.5, .74, .1), (.85, .97, .1), (.79, .9, .01)])
def test_a_rate_that_undoes_what_a_slower_one_learned_is_not_tame(slow, fast, edge):
    "Its units died, or most of them: it keeps less than half of what a slower run learned, which is a fifth or more"
    ends = {.0001: 1., .01: slow, .1: fast, 1.: 9.}
    found, best, runs = judged(lambda lr, top: [ends[round(lr, 9)]]*6, 1.)
    assert found == pytest.approx(edge) and best.end == slow and len(runs) == 3 + (edge > .05)

@pytest.mark.parametrize('start', [2.4, 5., 50.])
@pytest.mark.parametrize('first', [.001, .1, 10., 90.])
def test_learned_is_what_guessing_does_not_reach(start, first):
    "However loud the start is, a dead run comes to guessing at once; the first rate may be dead, too"
    def dies(lr, top): return [start, 2.3, 2.3, 2, 1, 1] if lr <= 1 else [start] + [2.3]*5
    edge, best, runs = judged(dies, start, first, 5, guess=2.3)
    assert 10**(-1/32) < edge <= 1 and best.end == 1 and not any(r.tame for r in runs.values() if r.lr > 1)

def test_levels():
    "The exchanged run's end, at most the start; the start where the exchange changed nothing or exploded"
    assert _level([2., 1., 1.], [2., 1.5, 1.5], 2.) == 1.5 and _level([2., 1., 1.], [2., 3., 3.], 2.) == 2
    assert _level([2., 1., 1.], [2., 1.0005, 1.], 2.) == 2 and _level([2., 1., 1.], [2., 1.01, 1.], 2.) == 1
    assert _level([2., 1., 1.], [2., 9., math.nan], 2.) == 2

def test_the_last_loss_is_judged_too(): assert judged(lambda lr, top: [1., 1., 9.], 1., halvings=1, steps=3)[:2] == (0, None)

def test_the_fastest_tame_rate_may_be_the_best():
    found, best, _ = judged(lambda lr, top: [9. if lr > .5 else 1 - lr]*6, 1.)
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

@pytest.mark.parametrize('first', [.01, 1.])
@pytest.mark.parametrize('loud', [1, 8, 40])
def test_a_net_that_dies_quietly_is_not_tame(loud, first):
    "Its loss falls to that of guessing, which is below the first one where the start is loud"
    model = net()
    with torch.no_grad(): model[-1].weight.mul_(loud)
    r = rehearse(model, blobs(), F.cross_entropy, Deadly, halvings=4, first=first)
    dead = [run for run in r.runs if run.lr > .2]
    assert .01 <= r.edge <= .2 and (loud > 8 or r.edge > .1) and not r.plateau and dead and not any(run.tame for run in dead)
    assert all(run.end == pytest.approx(math.log(4), abs=.01) for run in dead) and (r.start > 1.2*math.log(4)) == (loud > 1)

def test_labels_in_order_are_no_plateau():
    "Classes one after the other, in a ring: moved by one they would still be in order, and could be learned"
    y = torch.arange(640)%10
    x = F.one_hot(y, 10) + .6*torch.randn(640, 10)
    r = rehearse(nn.Linear(10, 10), list(zip(x.split(32), y.split(32))), F.cross_entropy, torch.optim.SGD)
    assert not r.plateau and min(run.end for run in r.runs if run.tame) < .8*r.shuffled
    assert r.shuffled == pytest.approx(math.log(10), abs=.15), 'nothing but frequencies can be learned'

def test_targets_change_partners():
    "Within a batch, all parts of a target alike, in as many orders as are asked for; single numbers stay"
    y = torch.arange(32)
    batches = [(torch.randn(32, 2), (y, y[:, None]*2., torch.tensor(3.)))]*4
    mixed = _exchanged(batches, 3)
    assert all(a[0] is b[0] for a, b in zip(batches, mixed))
    assert all(torch.equal(t.sort()[0], y) and torch.equal(double[:, 0], 2.*t) and three == 3 for _, (t, double, three) in mixed)
    orders = [tuple(t.tolist()) for _, (t, *_) in mixed]
    assert orders[0] == orders[3] and len(set(orders)) == 3 and tuple(y.tolist()) not in orders

@pytest.mark.parametrize('loud', [1, 40])
def test_what_is_learned_by_heart_or_of_loudness_is_no_structure(loud):
    "Noise is a plateau, though each batch comes three times, and though the loss falls by more than half from a loud start"
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad(): model[-1].weight.mul_(loud)
    noise = [(torch.randn(32, 8), torch.arange(32)%4) for _ in range(24)]
    r = rehearse(model, noise, F.cross_entropy, torch.optim.Adam, halvings=1)
    assert r.plateau and (loud == 1 or min(run.end for run in r.runs if run.tame) < .5*r.start)

def test_one_batch_over_and_over_is_no_plateau():
    model, batches = net(), blobs(32)
    assert not rehearse(model, batches, F.cross_entropy, torch.optim.Adam, steps=40, halvings=2).plateau

@pytest.mark.parametrize('batches', [blobs(), blobs(64), [(torch.randn(32, 8), torch.arange(32)%4) for _ in range(20)]])
def test_all_steps_are_counted(batches):
    "Of all runs of both rounds and of those with exchanged targets; a loss is asked once more per batch, at the start"
    asked = []
    def loss(out, y):
        asked.append(1)
        return F.cross_entropy(out, y)
    r = rehearse(net(), batches, loss, torch.optim.SGD, steps=20, halvings=2)
    assert r.steps == len(asked) - min(20, len(batches)) > sum(len(run.losses) for run in r.runs)
    assert f'({r.steps} steps, ' in repr(r)

def test_a_loss_below_nothing_is_refused():
    "A ceiling of so many times the start would lie below the start"
    with pytest.raises(ValueError, match='loss must not be negative, got -9'):
        rehearse(net(), blobs(), lambda out, y: F.cross_entropy(out, y) - 100, torch.optim.SGD)
