"What one waits for: a sweep of trials beside a plain loop, and the book's own commands beside their limits"
import os, subprocess, sys, tempfile, time
from pathlib import Path

from resnotes.lab import sweep
from resnotes.trial import Trial, build_learner, fit_trial
from timing import Pair, Value, row, seconds

root = Path(__file__).resolve().parents[1]
LIMITS = {'tests': 360, 'book': 20, 'chapter': 60}   # seconds


@row('sweep of 16 small trials with two workers', reach=1/1.8)
def two_workers(smoke):
    "Wall clock, beside the same trials in a plain loop; the workers are started once before"
    def trials(salt):
        return [Trial('bench', f'lr {salt} {i}', 'smoke', i, 'digits', 'resnet20', 1 if smoke else 2, .05,
                      dict(valid_pct=.8)) for i in range(2 if smoke else 16)]
    def loop():
        for t in trials(0):
            learn = build_learner(t)
            with learn.no_bar(), learn.no_logging(): fit_trial(learn, t)
    def ours():
        with tempfile.TemporaryDirectory() as folder:
            assert len(sweep(trials(0), folder, n_jobs=2)) == len(trials(0))
    yield Pair('a plain loop', ours, loop, clock=time.perf_counter, runs=2, warm=not smoke, profile='')


def limit(what, command, smoke, env=None):
    "Wall seconds of a command over its limit"
    def run():
        done = subprocess.run([sys.executable, *command], cwd=root, env=os.environ | (env or {}),
                              capture_output=True, text=True)
        if done.returncode: raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    took = seconds(run, time.perf_counter)
    yield Value(f'{LIMITS[what]} seconds', [took/LIMITS[what]], 'seconds', ours=took, theirs=LIMITS[what])


@row('building the site a second time', reach=1)
def book(smoke):
    with tempfile.TemporaryDirectory() as folder:
        if not smoke: list(limit('book', ['docs/build.py', folder], smoke))
        yield from limit('book', ['-c', 'pass'] if smoke else ['docs/build.py', folder], smoke)


@row('running the chapter on losses', reach=1)
def chapter(smoke):
    run = 'from nbdev.test import nbdev_test; nbdev_test("nbs/06_losses.ipynb", n_workers=0)'
    yield from limit('chapter', ['-c', 'pass' if smoke else run], smoke)


@row('the tests (only when asked for by name)', reach=1)
def tests(smoke):
    command = ['-m', 'pytest', '-q', '--numprocesses', '2', '--dist', 'worksteal']
    yield from limit('tests', ['-c', 'pass'] if smoke else command, smoke)
