"""What the page "How far it can be trusted" states, measured: python benchmarks/trust.py records | steps | audits | fuzz | tests

Each command adds one line to results/trust-cpu.jsonl. The mutants are counted by tests/mutate.py --note."""
import contextlib, gc, io, os, platform, re, subprocess, sys, tempfile, threading, time
from importlib import metadata
from pathlib import Path

import torch

from resnotes import cli
from resnotes.lab import provenance
from resnotes.records import append, find_record, load, to_line

root = Path(__file__).resolve().parents[1]


def note(what, command, **figures):
    "Add what was measured to the book's records, and print it"
    record = dict(id=what, what=what, command=command, **figures, **provenance(), finished=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()))
    append(root/'results'/'trust-cpu.jsonl', record)
    print(what, figures)


def in_use(model):
    "What must not grow: memory of the process in MiB, open files, threads, hooks of a model, tensors alive"
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    tensors = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    return dict(memory=pages*os.sysconf('SC_PAGE_SIZE')/2**20, files=len(os.listdir('/proc/self/fd')), threads_alive=threading.active_count(), hooks=hooks, tensors=tensors)


def growth(before, after): return {name: round(after[name] - before[name], 1) for name in before}


def seconds(function):
    "Processor seconds of a call whose output is not shown"
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.process_time()
        function()
        return round(time.process_time() - began, 2)


def records(n=100_000, name='digits-he-depth-scaled'):
    "A results file of many records: list, report, and one more line"
    e = cli.experiments[name]
    shipped = {r['arm']: r for r in load(root/'results'/f'{name}.jsonl')}
    seeds = range(n//len(shipped))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/f'{name}.jsonl'
        with open(path, 'wb') as f:
            for t in e.trials('cpu', [0]):
                for seed, i in zip(seeds, cli.ids_with_seeds(t, seeds)): f.write(to_line(shipped[t.arm] | dict(id=i, seed=seed)))
        size = path.stat().st_size/2**20
        figures = dict(listing=seconds(lambda: cli.list_command(folder)), report=seconds(lambda: cli.report_command(name, folder=folder)),
                       one_append=seconds(lambda: append(path, shipped[t.arm])), one_record=seconds(lambda: find_record(path, 'none')))
    note('records', 'python benchmarks/trust.py records', count=n, mebibytes=round(size), **figures)


def steps(n=10_000):
    "The smallest Learner with every callback, step after step"
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from resnotes import callbacks
    from resnotes.lab import Clock
    from resnotes.learner import classifier
    from resnotes.networks import build
    from resnotes.resume import Resume
    from resnotes.trial import BatchStatistics
    torch.manual_seed(0)
    items = [(torch.randn(1, 8, 8), i % 2) for i in range(40)]
    dls = DataLoaders(DataLoader(items, bs=4, shuffle=True), DataLoader(items[:8], bs=4), device='cpu')
    dls.c, seen, per_epoch = 2, {}, len(items)//4
    class Look(Callback):
        def after_epoch(self):
            if (self.epoch + 1)*per_epoch in (n//5, n): seen[(self.epoch + 1)*per_epoch] = in_use(self.model)
    with tempfile.TemporaryDirectory() as folder:
        kinds = (callbacks.SignalRecorder(1000), callbacks.Watch(patience=10**5), callbacks.Percentiles(every=1000), callbacks.Additions(), callbacks.EvenGradients(),
                 callbacks.HoldScale(), callbacks.AuditAtStart(warn=False), BatchStatistics(), Clock(), Resume(folder, {}))
        learn = classifier(dls, build('tower2', width=4, n_classes=2), 1e-4, cbs=[*kinds, Look()])
        with learn.no_bar(), learn.no_logging(): learn.fit(n//per_epoch)
    note('steps', 'python benchmarks/trust.py steps', count=n, callbacks=len(kinds), since=n//5, **growth(seen[n//5], seen[n]))


def audits(n=1000):
    "One model audited, and started anew, many times"
    from resnotes.diagnose import audit
    from resnotes.networks import build
    from resnotes.starts import initialize
    torch.manual_seed(0)
    model, x, y = build('tower3', width=4), torch.randn(8, 1, 8, 8), torch.arange(8)
    for name, call in (('audits', lambda: audit(model, x, y, loss=torch.nn.functional.cross_entropy)), ('initialize', lambda: initialize(model, x, rule='he_normal'))):
        for _ in range(n//5): call()
        before = in_use(model)
        for _ in range(n - n//5): call()
        note(name, 'python benchmarks/trust.py audits', count=n, since=n//5, **growth(before, in_use(model)))


def fuzz(n=50_000):
    "Right calls with one or two arguments replaced"
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', root/'tests'/'test_fuzz.py'], cwd=root, env=os.environ | {'RESNOTES_FUZZ': str(n)}, capture_output=True, text=True)
    if done.returncode: sys.exit(done.stdout)
    sys.path.insert(0, str(root/'tests'))
    import test_fuzz
    note('fuzz', f'RESNOTES_FUZZ={n} python -m pytest tests/test_fuzz.py', count=n + len(test_fuzz.every), functions=len(test_fuzz.calls), escaped=0)


apart = 'accessibility bench book hidden play reader search site'.split()   # stored outputs, the site, peers, the wheel

def tests():
    "All tests but those that belong to one set of versions, under the Python and the packages of this environment"
    files = [f for f in sorted((root/'tests').glob('test_*.py')) if f.stem.removeprefix('test_') not in apart]
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *files], cwd=root, capture_output=True, text=True)
    words = 'passed failed skipped error'.split()
    counts = dict.fromkeys(words, 0) | {word: int(n) for n, word in re.findall(rf'(\d+) ({"|".join(words)})', done.stdout.splitlines()[-1])}
    print(*[l for l in done.stdout.splitlines() if l.startswith(('FAILED', 'ERROR', 'E  '))], sep='\n')
    packages = {name: metadata.version(name) for name in ('torch', 'numpy', 'fastai', 'pandas')}
    note(f"tests, Python {platform.python_version()}, torch {packages['torch']}", 'python benchmarks/trust.py tests', **counts, packages=packages)


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)
    known = dict(records=records, steps=steps, audits=audits, fuzz=fuzz, tests=tests)
    if len(sys.argv) != 2 or sys.argv[1] not in known: sys.exit(f"usage: {sys.argv[0]} {' | '.join(known)}")
    known[sys.argv[1]]()
