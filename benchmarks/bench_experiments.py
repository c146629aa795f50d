"""How long the experiments take: python benchmarks/bench_experiments.py [experiment ...] [--steps PRESET]

Without --steps: every trial of the smoke preset, fitted one after the other on one core.
With --steps: two training steps of every arm of that preset on random images, times the number of steps, beside the estimate.
Both in processor time, which other work on the machine changes little. No data are needed for either."""
import statistics, time
from argparse import ArgumentParser

import torch
from resnotes import experiments as ex

LIMIT = 20   # seconds for a whole smoke experiment
torch.set_num_threads(1)


def step_seconds(trial, steps=3):
    "Median processor time of a step of forward, backward and update on random images"
    work, (_, shape) = ex.work(trial), ex.data_size(trial)
    labels, bs = trial.loss == 'cross_entropy', work.images//work.steps
    model = ex.build(trial, shape[0], 10 if labels else 1).train()
    x, loss = torch.randn(bs, *shape), ex.losses[trial.loss](**trial.loss_args)
    y = torch.randint(0, 10, (bs,)) if labels else (torch.rand(bs, *shape) < .5).float()
    opt, times = torch.optim.SGD(model.parameters(), 1e-6, trial.momentum), []
    for _ in range(steps):
        start = time.process_time()
        opt.zero_grad(), loss(model(x), y).backward(), opt.step()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def by_steps(experiment, preset):
    "Measured and estimated minutes of one preset, one trial after the other"
    trials, arms = experiment.trials(preset), {}
    for t in trials:
        if t.arm not in arms: arms[t.arm] = step_seconds(t)
    measured = sum(arms[t.arm]*ex.work(t).steps*t.epochs for t in trials)/60
    print(f'{experiment.name:22} {preset:6} {len(trials):3} trials  measured {measured:6.1f} core minutes  estimated {ex.minutes(trials, "core"):6.1f} min', flush=True)


def whole(experiment):
    "Fit all smoke trials"
    start = time.process_time()
    for t in experiment.trials('smoke'):
        learn = ex.learner(t)
        with learn.no_bar(), learn.no_logging(): ex.fit(learn, t)
    seconds, n = time.process_time() - start, len(experiment.trials('smoke'))
    print(f'{experiment.name:22} {n:3} trials {seconds:6.1f} s = x{seconds/LIMIT:.2f} of the limit', flush=True)
    return seconds


if __name__ == '__main__':
    args = ArgumentParser()
    args.add_argument('names', nargs='*', metavar='experiment')
    args.add_argument('--steps', dest='preset', choices=ex.presets)
    names, preset = vars(args.parse_args()).values()
    unknown = [n for n in names if n not in ex.experiments]
    if unknown: args.error(f'unknown: {unknown}; allowed are {list(ex.experiments)}')
    names = names or list(ex.experiments)
    if preset: [by_steps(ex.experiments[n], preset) for n in names]
    else:
        slow = [n for n in names if whole(ex.experiments[n]) > LIMIT]
        assert not slow, f'{slow} take more than {LIMIT} s'
