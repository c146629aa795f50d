"""How long the experiments take: python benchmarks/bench_experiments.py [experiment ...] [--steps PRESET]

Without --steps: every trial of the smoke preset, fitted one after the other on one core.
With --steps: two training steps of every arm of that preset on random images, times the number of steps, beside the
minutes that the records tell. Both in processor time, which other work on the machine changes little. No data are needed."""
import statistics, time
from argparse import ArgumentParser

import torch
from resnotes import experiments as ex
from resnotes.trial import build_learner, build_model, fit_trial, losses, presets, promised_images

LIMIT = 20   # seconds for a whole smoke experiment
torch.set_num_threads(1)


def batch_shape(trial):
    "Images per step, channels, height and width"
    args = trial.data_args
    if trial.data == 'digits': return args.get('bs', 64), 1, 8, 8
    if trial.data == 'cifar10': return args.get('bs', 64), 3, 32, 32
    side = args.get('size') or 101
    return args.get('bs', 32), 1, side, side


def step_seconds(trial, steps=3):
    "Median processor time of a step of forward, backward and update on random images"
    labels, shape = trial.loss == 'cross_entropy', batch_shape(trial)
    x, loss = torch.randn(shape), losses[trial.loss](**trial.loss_args)
    y = torch.randint(0, 10, shape[:1]) if labels else (torch.rand(shape) < .5).float()
    model = build_model(trial, x, 10 if labels else 1).train()
    opt, times = torch.optim.SGD(model.parameters(), 1e-6, trial.momentum), []
    for _ in range(steps):
        start = time.process_time()
        opt.zero_grad()
        loss(model(x), y).backward()
        opt.step()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def by_steps(experiment, preset):
    "Measured and recorded minutes of one preset, one trial after the other"
    trials, arms = experiment.trials(preset), {}
    for t in trials:
        if t.arm not in arms: arms[t.arm] = step_seconds(t)
    measured = sum(arms[t.arm]*(promised_images(t)//batch_shape(t)[0])*t.epochs for t in trials)/60
    recorded = ex.recorded_minutes(experiment.name, preset)
    print(f'{experiment.name:22} {preset:6} {len(trials):3} trials  steps alone {measured:6.1f} core minutes  '
          f'recorded {recorded:6.1f} min', flush=True)


def whole(experiment):
    "Fit all smoke trials"
    start = time.process_time()
    for t in experiment.trials('smoke'):
        learn = build_learner(t)
        with learn.no_bar(), learn.no_logging(): fit_trial(learn, t)
    seconds, n = time.process_time() - start, len(experiment.trials('smoke'))
    print(f'{experiment.name:22} {n:3} trials {seconds:6.1f} s = x{seconds/LIMIT:.2f} of the limit', flush=True)
    return seconds


if __name__ == '__main__':
    args = ArgumentParser()
    args.add_argument('names', nargs='*', metavar='experiment')
    args.add_argument('--steps', dest='preset', choices=presets)
    names, preset = vars(args.parse_args()).values()
    unknown = [n for n in names if n not in ex.experiments]
    if unknown: args.error(f'unknown: {unknown}; allowed are {list(ex.experiments)}')
    names = names or list(ex.experiments)
    if preset:
        for n in names: by_steps(ex.experiments[n], preset)
    else:
        slow = [n for n in names if whole(ex.experiments[n]) > LIMIT]
        assert not slow, f'{slow} take more than {LIMIT} s'
