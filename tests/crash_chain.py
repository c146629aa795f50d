"""Kills trials over and over, fills the disk under them, and compares what they end in with trials left alone; run by test_lab.py.

One process imports everything and trains nothing. It forks children that train and that it kills, so a kill costs no import."""
import builtins, io, json, os, random, resource, shutil, signal, sys, traceback
from dataclasses import replace
from pathlib import Path

import torch
import resnotes.data as data
import resnotes.lab as lab
import resnotes.records as records
from resnotes.lab import recorded, run_trial, unfinished
from resnotes.records import append, load, to_line
from resnotes.trial import Trial, sizes

torch.set_num_threads(1)
# a shell starts what it puts into the background with interrupts ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
# a fifth of the digits, read once: what is killed here is training and writing
digits = data.load_digits()
digits.images, digits.target = digits.images[:360], digits.target[:360]
data.load_digits = lambda: digits
sizes['digits'] = 360

epochs = 4
trial = Trial('chain', arm='sgd', preset='smoke', seed=0, data='digits', data_args=dict(valid_pct=.5),
              model='taki_tower', model_args=dict(depth=2, batch_norm=True), epochs=epochs, lr=.05,
              schedule='one_cycle')
adam = replace(trial, arm='adam', optimizer='adam', lr=.003, schedule='steps')
trials = [trial, replace(trial, seed=1), adam]
measured = {'seconds', 'longest_epoch', 'processes', 'peak_memory', 'finished', 'dirty'}


def child(folder, wound=None):
    "Process id of a child that runs all trials"
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        count_epochs(folder)
        if wound: wound()
        for t in trials: run_trial(t, folder)
        code = 0
    except KeyboardInterrupt: code = 130
    except BaseException: traceback.print_exc()
    finally: os._exit(code)

def count_epochs(folder):
    "Note every epoch that is begun, by one write that survives the process"
    before = lab.Clock.before_epoch
    def noted(self):
        before(self)
        settings = self.resume.settings
        with open(folder/'epochs.txt', 'a') as f:
            f.write(f'{settings["arm"]} {settings["seed"]} {self.epoch}\n')
    lab.Clock.before_epoch = noted

def outcome(trial, folder):
    "What a trial ended in, as bytes, since NaN is not equal to itself; None if it has not ended"
    r = recorded(trial, folder)
    return r and to_line({k: v for k, v in r.items() if k not in measured}).decode()

def outcomes(folder):
    return {t.id: end for t in trials if (end := outcome(t, folder))}

def dead(status): return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 130
def die(): os.kill(os.getpid(), signal.SIGKILL)


# wounds: each kills its own process, after so much work or at the n-th call of something

def after_work(seconds, interrupt):
    "Die, or be interrupted as by Ctrl-C, after so many seconds of the processor, however busy the machine is"
    def wound():
        signal.signal(signal.SIGPROF, signal.default_int_handler if interrupt else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
    return wound

def at_call(owner, name, n, after=False):
    "Die before, or after, the n-th call of `owner.name`"
    def wound():
        whole, calls = getattr(owner, name), iter(range(1, 10**6))
        def wounded(*args, **kwargs):
            last = next(calls) == n
            if last and not after: die()
            out = whole(*args, **kwargs)
            if last: die()
            return out
        setattr(owner, name, wounded)
    return wound

def half_checkpoint(n):
    "Die when half of the n-th checkpoint is written"
    def wound():
        save, calls = torch.save, iter(range(1, 10**6))
        def half(state, file):
            whole = io.BytesIO()
            save(state, whole)
            if next(calls) < n: return file.write(whole.getvalue())
            file.write(whole.getvalue()[:len(whole.getvalue())//2])
            file.flush()
            die()
        torch.save = half
    return wound

class Torn:
    "A results file at whose first write the process dies after `share` of the bytes"
    def __init__(self, file, share): self.file, self.share = file, share
    def __enter__(self): return self
    def __exit__(self, *args): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, line):
        self.file.write(line[:round(self.share*len(line))])
        die()

def torn_line(share):
    "Die when a share of the next record is written"
    def wound():
        def torn(path, *args, **kwargs):
            file = builtins.open(path, *args, **kwargs)
            return Torn(file, share) if Path(path).name == 'chain.jsonl' else file
        records.open = torn
    return wound

worst = {
    'before the first checkpoint gets its name': at_call(os, 'replace', 1),
    'half a checkpoint': half_checkpoint(2),
    'before a checkpoint is synced': at_call(os, 'fsync', 3),
    'after a checkpoint is synced': at_call(os, 'fsync', 3, after=True),
    'before the folder of a checkpoint is synced': at_call(os, 'fsync', 2),
    'before a checkpoint gets its name': at_call(os, 'replace', 1),
    'after a checkpoint got its name': at_call(os, 'replace', 1, after=True),
    'before the clock stops': at_call(lab.Clock, 'after_epoch', 1),
    'before the record is written': at_call(lab, 'append', 1),
    'nothing of the record': torn_line(0),
    'half the record': torn_line(.5),
    'all of the record but the newline': torn_line(.9999),
    'before the checkpoint of a recorded trial is deleted': at_call(shutil, 'rmtree', 1),
    'after the checkpoint of a recorded trial is deleted': at_call(shutil, 'rmtree', 2, after=True),
    'half a checkpoint of the last trial': half_checkpoint(3),
    'half the last record': torn_line(.3),
}


# a disk is full for the first checkpoint, then for the record

def train_on_full_disk(folder, limit):
    "Train where no file may have more bytes, then without a limit, and note what was said"
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try: run_trial(trial, folder)
    except OSError as e: said = e.strerror
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder/'said.txt').write_text(said)
    run_trial(trial, folder)

def full_disk(folder, limit, want):
    "What was said, whether it ended as it did alone, and what is unfinished"
    folder.mkdir()
    if limit > 300_000: append(folder/'chain.jsonl', dict(id='another', arm='', preset='', pad='x'*300_000))
    pid = os.fork()
    if not pid:
        try: train_on_full_disk(folder, limit)
        except BaseException: traceback.print_exc()
        finally: os._exit(0)
    os.waitpid(pid, 0)
    return dict(said=(folder/'said.txt').read_text(), same=outcome(trial, folder) == want, unfinished=[t.id for t in unfinished(folder)])


def lost(folder):
    "For every process that was killed, how many epochs had to be done again; the longest repetition of any epoch shows it"
    begun = [tuple(l.split()) for l in (folder/'epochs.txt').read_text().splitlines()]
    pairs = [(a, b) for a, b in zip(begun, begun[1:]) if a[:2] == b[:2]]
    steps = [(int(b[2]), int(a[2])) for a, b in pairs]
    return [old + 1 - new for new, old in steps]  # 0: the next epoch; 1: the epoch that was running, again

def main(root):
    report, rng = {}, random.Random(0)
    alone = root/'alone'
    alone.mkdir()
    pid, status, usage = os.wait4(child(alone), 0)
    whole, want = usage.ru_utime + usage.ru_stime, outcomes(alone)
    assert status == 0
    assert len(want) == len(trials)

    kills, rounds, different, losses, kept = 0, 0, [], [], []
    while kills < 20 or not rounds:
        folder = root/f'random{rounds}'
        folder.mkdir()
        while len(outcomes(folder)) < len(trials):
            wound = after_work(rng.uniform(0, whole/3), interrupt=rng.random() < .5)
            kills += dead(os.waitpid(child(folder, wound), 0)[1])
        assert os.waitpid(child(folder), 0)[1] == 0
        different += [i for i, line in outcomes(folder).items() if line != want[i]]
        losses, kept, rounds = losses + lost(folder), kept + load(folder/'chain.jsonl'), rounds + 1
    report['random'] = dict(kills=kills, rounds=rounds, different=different)

    folder = root/'worst'
    folder.mkdir()
    died, survived = [], []
    for name, wound in worst.items():
        status = os.waitpid(child(folder, wound), 0)[1]
        (died if dead(status) else survived).append(name)
    assert os.waitpid(child(folder), 0)[1] == 0
    changed = [i for i, line in outcomes(folder).items() if line != want[i]]
    report['worst'] = dict(died_at=died, survived=survived, different=changed)
    report['full'] = {name: full_disk(root/name, limit, want[trial.id])
                      for name, limit in (('checkpoint', 1000), ('record', 300_200))}
    left = [p.name for p in (folder/'checkpoints').iterdir() if not p.name.startswith('.')]
    assert left == ['planned.jsonl'], left
    times = [{k: r[k] for k in ('seconds', 'longest_epoch', 'processes')} for r in kept]
    report |= dict(lost=losses + lost(folder), records=times, whole=whole)
    print(json.dumps(report))

if __name__ == '__main__': main(Path(sys.argv[1]))
