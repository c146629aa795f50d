"The laboratory under attack: full disks, processes killed at any moment, budgets, and where a number comes from."
import json, math, os, re, subprocess, sys, threading, time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import resnotes, resnotes.lab as lab
from resnotes.lab import commit, failures, fingerprint, provenance, recorded, run_trial, sweep, unfinished, write_plan
from resnotes.records import from_line, load, results, to_line
from resnotes.stats import summarize
from resnotes.trial import Trial

tiny = Trial('tiny', arm='sgd', preset='smoke', seed=0, data='digits', data_args=dict(valid_pct=.9), model='taki_tower',
             model_args=dict(depth=2, batch_norm=True), epochs=2, lr=.05, schedule='one_cycle')
measured = {'seconds', 'longest_epoch', 'processes', 'peak_memory', 'finished', 'dirty'}   # who edits while tests run shall not fail them

pytestmark = pytest.mark.usefixtures('one_thread')

def outcome(record): return {k: v for k, v in record.items() if k not in measured}
def same(a, b): return to_line(outcome(a)) == to_line(outcome(b))  # as bytes, for NaN is not equal to itself


# killed at any moment

chain = Path(__file__).with_name('crash_chain.py')

@pytest.fixture(scope='module')
def crashes(once):
    "What `crash_chain.py` reports: one process that has imported everything forks children and kills them"
    def run(folder):
        folder.mkdir()
        out = subprocess.run([sys.executable, chain, folder], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert out.returncode == 0, out.stdout + out.stderr
        (folder/'report.json').write_text(out.stdout.splitlines()[-1])
    return json.loads((once('crashes', run)/'report.json').read_text())

def test_a_trial_survives_a_full_disk_at_its_checkpoint_and_at_its_record(crashes):
    for name, said in (('checkpoint', 'File too large'), ('record', 'No space left on device')):
        assert crashes['full'][name] == dict(said=said, same=True, unfinished=[])

def test_trials_killed_at_random_moments_end_in_the_same_bits(crashes):
    assert crashes['random']['kills'] >= 20 and crashes['random']['rounds'] >= 1
    assert crashes['random']['different'] == []

def test_trials_killed_at_the_worst_moments_end_in_the_same_bits(crashes):
    worst = crashes['worst']
    assert len(worst['died_at']) >= 12 and worst['survived'] == [], 'every wound must have been met'
    assert worst['different'] == []

def test_no_epoch_but_the_running_one_is_done_twice(crashes):
    assert crashes['lost'] and max(crashes['lost']) <= 1

def test_seconds_add_up_over_processes(crashes):
    for record in crashes['records']:
        assert record['processes'] >= 1 and record['longest_epoch']*4 >= record['seconds'] >= record['longest_epoch'] > 0
    assert max(r['processes'] for r in crashes['records']) > 1


# budget, jobs, machines

def test_an_epoch_is_late_when_the_longest_known_would_not_fit():
    clock = lab.Clock(time.time() + 100, known=90)
    assert not clock.late() and not lab.Clock().late() and not lab.Clock(time.time() + .9).late()
    clock.longest = 110
    assert clock.late() and lab.Clock(time.time() + 100, known=110).late() and lab.Clock(time.time()).late()

class Time:
    "Stands for the module `time`: nothing takes time but epochs, of which each takes as many seconds as it is told"
    def __init__(self): self.now = 1e9
    def time(self): return self.now
    def monotonic(self): return self.now - 9e8
    def __getattr__(self, name): return getattr(time, name)

@pytest.fixture
def simulated(monkeypatch):
    "Epochs that take 1, 2, 1, 1, … seconds on a clock that shows nothing else"
    clock, whole = Time(), lab.Clock.after_epoch
    def after_epoch(self):
        clock.now += 2 if self.epoch == 1 else 1
        whole(self)
    monkeypatch.setattr(lab, 'time', clock)
    monkeypatch.setattr(lab.Clock, 'after_epoch', after_epoch)
    return clock

def test_no_epoch_is_begun_that_would_end_too_late(tmp_path, simulated):
    trial = replace(tiny, epochs=9)
    def kept(): return torch.load(tmp_path/'checkpoints'/trial.id/'resume.pt', weights_only=True)
    assert run_trial(trial, tmp_path, simulated.now + 6.9) is None
    assert simulated.now == 1e9 + 5, 'after 1 + 2 + 1 + 1 seconds the longest, of 2, would be too long'
    clock = kept()['callbacks']['clock']
    assert kept()['done'] == 4 and unfinished(tmp_path) == [trial] and (clock['longest'], clock['seconds']) == (2, 5)
    assert run_trial(trial, tmp_path, simulated.now + 1.9) is None
    assert kept()['done'] == 4, 'the longest epoch is remembered'
    record = run_trial(trial, tmp_path, simulated.now + 6.1)
    assert (record['seconds'], record['longest_epoch'], record['processes']) == (10, 2, 2) and len(record['accuracy']) == 9

def test_a_deadline_is_one_of_the_clock_on_the_wall(tmp_path):
    trial, deadline = replace(tiny, epochs=5000), time.time() + 2
    while run_trial(trial, tmp_path, deadline) or not list(tmp_path.glob('checkpoints/*/resume.pt')): deadline = time.time() + 2
    kept = torch.load(tmp_path/'checkpoints'/trial.id/'resume.pt', weights_only=True)
    clock = kept['callbacks']['clock']
    assert 1 <= kept['done'] < trial.epochs and 0 < clock['longest'] <= clock['seconds'] < 2 + clock['longest']
    assert time.time() < deadline + clock['longest'] + 5

def test_seconds_and_longest_epoch_are_carried_over_an_interruption(tmp_path, monkeypatch, simulated):
    trial, whole = replace(tiny, epochs=4), lab.Clock.before_epoch
    def interrupted(self):
        if self.epoch == 2: raise KeyboardInterrupt
        whole(self)
    with monkeypatch.context() as m:
        m.setattr(lab.Clock, 'before_epoch', interrupted)
        with pytest.raises(KeyboardInterrupt): run_trial(trial, tmp_path)
    record = run_trial(trial, tmp_path)
    assert (record['processes'], record['longest_epoch'], record['seconds']) == (2, 2, 5)
    assert len(record['accuracy']) == 4

def test_a_trial_like_recorded_ones_is_not_begun_too_late(tmp_path):
    assert lab.longest_known(tiny, tmp_path) == 0
    first = run_trial(tiny, tmp_path)
    assert lab.longest_known(replace(tiny, seed=1), tmp_path) == first['longest_epoch'] and lab.longest_known(replace(tiny, arm='else'), tmp_path) == 0
    assert run_trial(replace(tiny, seed=1), tmp_path, deadline=time.time() + first['longest_epoch']/2) is None
    assert not (tmp_path/'checkpoints'/replace(tiny, seed=1).id).exists()

def test_a_sweep_out_of_budget_goes_on_later(tmp_path):
    trials = [replace(tiny, seed=s) for s in range(3)]
    assert sweep(trials, tmp_path, budget_minutes=1e-9) == []
    assert unfinished(tmp_path) == trials
    records = sweep(unfinished(tmp_path), tmp_path)
    assert [r['seed'] for r in records] == [0, 1, 2] and unfinished(tmp_path) == []
    assert len({r['weights'] for r in records}) == 3
    assert sweep(trials, tmp_path) == records and len(results('tiny', tmp_path)) == 3

@pytest.mark.parametrize('kw, said', [(dict(backend='ray'), 'backend must be one of'), (dict(budget_minutes=0), 'budget_minutes must'), (dict(n_jobs=0), 'n_jobs must'), (dict(n_jobs='two'), 'n_jobs must'),
                                      (dict(budget_minutes=math.nan), 'budget_minutes must')])
def test_sweep_refuses(tmp_path, kw, said):
    with pytest.raises((ValueError, TypeError), match=said): sweep([tiny], tmp_path, **kw)
    assert list(tmp_path.iterdir()) == []

def test_only_trials_are_run(tmp_path):
    with pytest.raises(TypeError, match='trials must hold `Trial`s'): run_trial(asdict(tiny), tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_threads_of_the_first_start_are_kept(tmp_path):
    before = torch.get_num_threads()
    write_plan([tiny], tmp_path, threads=1)
    write_plan([tiny], tmp_path, threads=3)
    try:
        torch.set_num_threads(2)
        assert run_trial(tiny, tmp_path)['threads'] == 1 and torch.get_num_threads() == 2
        write_plan([replace(tiny, seed=1)], tmp_path)
        assert lab.planned(tmp_path)[replace(tiny, seed=1).id][1] == 2
    finally: torch.set_num_threads(before)

# trials that fail

def wounded(monkeypatch, **wounds):
    "Let trials of these arms end in what their function does"
    whole = lab.fit_trial
    def fit(learn, trial): return wounds[trial.arm]() if trial.arm in wounds else whole(learn, trial)
    monkeypatch.setattr(lab, 'fit_trial', fit)

def out_of_memory(): return torch.empty(2**60)
def by_zero(): return 1/0
def too_much(): raise MemoryError

def test_a_trial_that_fails_ends_no_other(tmp_path, monkeypatch):
    arms = [replace(tiny, arm=name) for name in ('memory', 'zero', 'python', 'good')]
    wounded(monkeypatch, memory=out_of_memory, zero=by_zero, python=too_much)
    with pytest.warns(UserWarning, match="tiny 'zero' seed 0 failed: ZeroDivisionError"): records = sweep(arms, tmp_path)
    assert [r['arm'] for r in records] == ['good'] and unfinished(tmp_path) == []
    found = failures(tmp_path)
    assert [found[t.id]['error'].split(':')[0] for t in arms[:3]] == ['RuntimeError', 'ZeroDivisionError', 'MemoryError']
    assert 'by_zero' in found[arms[1].id]['traceback'] and 'memory' in found[arms[0].id]['error']
    assert unfinished(tmp_path, retry=True) == arms[:3]
    assert len(sweep(arms, tmp_path)) == 1 and len(load(lab.failures_file(tmp_path))) == 3, 'they are not tried again'
    monkeypatch.undo()
    assert len(sweep(arms, tmp_path, retry=True)) == 4 and failures(tmp_path) == {}

def test_a_full_disk_ends_the_sweep_and_is_no_trial_s_fault(tmp_path, monkeypatch):
    def full(): raise OSError(28, 'No space left on device')
    wounded(monkeypatch, sgd=full)
    with pytest.raises(OSError, match='No space left'): sweep([tiny], tmp_path)
    assert failures(tmp_path) == {} and unfinished(tmp_path) == [tiny]

def deadly(learn, trial):
    "Fit; but the process of one trial is killed each time, and that of another only once"
    if (trial.arm, trial.seed) == ('deadly', 0): os.kill(os.getpid(), 9)
    once = Path(os.environ['WOUND'])
    if (trial.arm, trial.seed) == ('victim', 0) and not once.exists():
        once.touch()
        os.kill(os.getpid(), 9)
    return whole_fit(learn, trial)

whole_fit = lab.fit_trial

def deadly_attempt(*args):
    "`attempt` in a worker whose `fit_trial` is `deadly`"
    lab.fit_trial = deadly
    return whole_attempt(*args)

whole_attempt = lab.attempt

def test_a_killed_worker_ends_its_own_trial_and_no_other(tmp_path, monkeypatch):
    "Who was under way is tried once more, alone; only who is killed alone is at fault"
    trials = [replace(tiny, arm=arm, seed=s) for arm in ('deadly', 'victim') for s in (0, 1)] + [replace(tiny, arm='good')]
    monkeypatch.setenv('WOUND', str(tmp_path/'once'))
    monkeypatch.setattr(lab, 'attempt', deadly_attempt)
    with pytest.warns(UserWarning, match="tiny 'deadly' seed 0 failed: RuntimeError: its process was killed even alone"):
        records = sweep(trials, tmp_path/'results', n_jobs=2)
    assert [(r['arm'], r['seed']) for r in records] == [('deadly', 1), ('victim', 0), ('victim', 1), ('good', 0)]
    assert (tmp_path/'once').exists() and list(failures(tmp_path/'results')) == [trials[0].id]

def test_a_network_that_cannot_be_built_is_refused_before_anything_is_written(tmp_path):
    bad = replace(tiny, model='resnet20', model_args=dict(shortcut='scale', shortcut_args=dict(colour=1)))
    with pytest.raises(ValueError, match="model_args must make a resnet20, got .* in the arm 'sgd': .*colour"): sweep([tiny, bad], tmp_path)
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('plan', [7, None, {}, dict(experiment=3)])
def test_a_plan_must_name_its_experiment(tmp_path, plan):
    lab.append(lab.plans_file(tmp_path), dict(trials=dict(a=plan), threads=1))
    with pytest.raises(ValueError, match=r'planned.jsonl: the plan a must name its experiment, got '): lab.planned(tmp_path)

def at_once(outcome):
    "Stands for `Parallel`: each call is made here, or ends as it is told"
    def run(calls):
        if outcome: raise outcome
        return [function(*args, **kwargs) for function, args, kwargs in calls]
    return lambda n_jobs, backend: run

def test_who_runs_alone_returns_the_record_or_is_at_fault(tmp_path, monkeypatch):
    late = replace(tiny, seed=1)
    monkeypatch.setattr(lab, 'Parallel', at_once(None))
    i, record, failure = lab.run_alone(tiny, tmp_path, None, False, math.inf)
    assert (i, failure) == (tiny.id, None) and record == recorded(tiny, tmp_path) and record['id'] == i
    monkeypatch.setattr(lab, 'Parallel', at_once(lab.TerminatedWorkerError()))
    i, record, failure = lab.run_alone(late, tmp_path, None, False, math.inf)
    assert (i, record) == (late.id, None) and 'even alone' in failure['error'] and failures(tmp_path) == {late.id: failure}


# more than one machine

class Done:
    "Stands for a future of a call that was made: it returned, or ended in an error"
    def __init__(self, function, *args):
        try: self.value, self.error = function(*args), None
        except Exception as e: self.value, self.error = None, e
    def exception(self): return self.error
    def result(self): return self.value

def test_what_comes_from_elsewhere_is_written_here_and_once(tmp_path, monkeypatch):
    "A worker that is lost is a failure; a record that came twice, as when a lost worker had done its trial, is one"
    first, failing, lost, other = trials = [replace(tiny, arm=name) for name in ('first', 'failing', 'lost', 'other')]
    wounded(monkeypatch, failing=by_zero)
    monkeypatch.setitem(sys.modules, 'distributed', SimpleNamespace(as_completed=list, get_worker=lambda: SimpleNamespace(local_directory=tmp_path/'there')))
    cancelled = []
    def submit(function, settings, *args, pure):
        assert not pure, 'what failed is to be done again, and not remembered'
        return Done(by_zero) if settings['arm'] == 'lost' else Done(function, settings, *args)
    client, here = SimpleNamespace(submit=submit, cancel=cancelled.extend), tmp_path/'here'
    write_plan(trials, here, threads=1)
    lab.append(lab.results_file('tiny', here), run_trial(first, tmp_path/'there'/'resnotes'))
    got = {i: (record, failure) for i, record, failure in lab.on_cluster(trials, here, client, None)}
    assert list(got) == [t.id for t in trials] and len(cancelled) == 4
    assert [r['arm'] for r in load(here/'tiny.jsonl')] == ['first', 'other'] and got[other.id] == (recorded(other, here), None)
    assert got[failing.id][0] is got[lost.id][0] is None and failures(here) == {t.id: got[t.id][1] for t in (failing, lost)}
    assert unfinished(here) == []
    with pytest.raises(RuntimeError, match=f'a worker has resnotes {resnotes.__version__} and not 9.9'): lab.run_apart(asdict(first), 1, None, '9.9')

stubs = {'older': "__version__ = '0.0.1'", 'without': "raise ImportError('no resnotes here')"}

@pytest.fixture
def cluster(tmp_path):
    "A scheduler, and a function that starts a real worker in a folder of its own"
    distributed, workers = pytest.importorskip('distributed'), []
    def start(name, threads=1):
        home, paths = tmp_path/name, [str(Path(__file__).parents[1])]
        (home/'resnotes').mkdir(parents=True)
        if name in stubs:
            (home/'resnotes'/'__init__.py').write_text(stubs[name])
            paths = [str(home)]
        command = [sys.executable, '-m', 'distributed.cli.dask_worker', local.scheduler_address, '--name', name, '--no-nanny', '--no-dashboard', '--local-directory', str(home), '--nthreads', str(threads)]
        workers.append(subprocess.Popen(command, cwd=home, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(paths)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return workers[-1]
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as local, distributed.Client(local) as client:
        start.client, start.address = client, local.scheduler_address
        yield start
        for worker in workers: worker.kill(), worker.wait()

def test_a_cluster_makes_the_records_of_one_machine_though_a_worker_dies(tmp_path, cluster):
    trials = [replace(tiny, seed=s, epochs=60 if s == 0 else 2) for s in (0, 1, 2)]
    want = sweep(trials, tmp_path/'here')
    first = cluster('first')
    cluster.client.wait_for_workers(1, timeout=120)
    def kill_the_first():
        late = time.monotonic() + 120
        while not list(tmp_path.glob('first/**/resume.pt')) and time.monotonic() < late: time.sleep(.01)
        first.kill()
        cluster('second')
    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    got = sweep(trials, tmp_path/'client', backend='dask')
    killer.join()
    assert [same(a, b) for a, b in zip(got, want, strict=True)] == [True]*3
    assert load(tmp_path/'client'/'tiny.jsonl') == sorted(got, key=lambda r: r['finished']) or len(load(tmp_path/'client'/'tiny.jsonl')) == 3
    assert failures(tmp_path/'client') == {} and unfinished(tmp_path/'client') == []
    assert {p.name for p in tmp_path.iterdir()} == {'here', 'first', 'second', 'client'}

def test_workers_that_cannot_run_trials_are_refused_by_name(tmp_path, cluster):
    with pytest.raises(ValueError, match='must have workers'): sweep([tiny], tmp_path/'x', backend='dask')
    for name in stubs: cluster(name)
    cluster.client.wait_for_workers(2, timeout=120)
    began = time.monotonic()
    with pytest.raises(ValueError, match=f'workers must have resnotes {resnotes.__version__}') as e: sweep([tiny], tmp_path/'x', backend='dask')
    assert time.monotonic() - began < 15
    assert 'older (tcp://' in str(e.value) and 'has 0.0.1' in str(e.value) and 'without (tcp://' in str(e.value) and 'no resnotes here' in str(e.value)
    cluster('many', threads=2)
    cluster.client.wait_for_workers(3, timeout=120)
    with pytest.raises(ValueError, match="one thread each .*'many .*: 2"): sweep([tiny], tmp_path/'x', backend='dask')
    assert not (tmp_path/'x').exists()

def test_dask_without_a_client_is_refused(tmp_path):
    pytest.importorskip('distributed')
    with pytest.raises(ValueError): sweep([tiny], tmp_path/'none', backend='dask')


# provenance

def git(cwd, *args): return subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b.c', '-C', cwd, *args], check=True, capture_output=True, text=True).stdout.strip()

def test_the_commit_is_that_of_the_package_and_of_nothing_else(tmp_path, monkeypatch):
    package = tmp_path/'env'/'resnotes'
    package.mkdir(parents=True)
    (package/'__init__.py').write_text('')
    (tmp_path/'own.py').write_text('')
    monkeypatch.setattr(resnotes, '__file__', str(package/'__init__.py'))
    assert commit() == (None, None)
    git(tmp_path, 'init', '-q'), git(tmp_path, 'add', 'own.py'), git(tmp_path, 'commit', '-qm', 'own project')
    assert commit() == (None, None), 'an environment inside of somebody else\'s repository'
    git(tmp_path, 'add', '.'), git(tmp_path, 'commit', '-qm', 'the package')
    assert commit() == (git(tmp_path, 'rev-parse', 'HEAD'), False)
    (tmp_path/'own.py').write_text('x = 1')
    assert commit()[1] is False, 'results and chapters may change'
    (package/'__init__.py').write_text('x = 1')
    assert commit()[1] is True
    monkeypatch.setenv('PATH', '')
    assert commit() == (None, None), 'no git'

def test_provenance_can_be_written_down():
    p = from_line(to_line(provenance()))
    assert p['device'] == 'cpu' and p['versions']['torch'] == torch.__version__ and p['versions']['resnotes'] == resnotes.__version__

def test_fingerprint_sees_values_names_shapes_and_types():
    x = torch.arange(6.).reshape(2, 3)
    def hashed(name='weight', x=x):
        m = torch.nn.Module()
        m.register_buffer(name, x)
        return fingerprint(m)
    prints = [hashed(), hashed('bias'), hashed(x=x.reshape(3, 2)), hashed(x=x.double()), hashed(x=x.bfloat16()), hashed(x=-x), hashed(x=torch.tensor(3))]
    assert len(set(prints)) == len(prints)
    assert hashed(x=x.t().contiguous().t()) == hashed(), 'the layout in memory is no part of the value'

def test_a_diverged_trial_is_recorded_in_legal_json(tmp_path):
    r = run_trial(replace(tiny, lr=1e15, schedule='constant', model_args=dict(depth=2)), tmp_path)
    assert not math.isfinite(r['final_valid_loss'])
    line = (tmp_path/'tiny.jsonl').read_bytes()
    json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert not math.isfinite(load(tmp_path/'tiny.jsonl')[0]['final_valid_loss'])
    assert summarize(results('tiny', tmp_path), 'final_valid_loss').diverged.tolist() == [1]



def test_what_a_recorder_leaves_is_losses_and_metrics_by_epoch_the_last_of_each_and_some_of_the_steps():
    recorder = SimpleNamespace(metric_names=['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time'], values=[[3., 4., .1], [2., 5., .2], [1., 6., .3]], losses=[torch.tensor(i + 1/3) for i in range(2001)])
    h = lab.history_of(recorder)
    assert {k: v for k, v in h.items() if k != 'step_loss'} == dict(train_loss=[3, 2, 1], valid_loss=[4, 5, 6], accuracy=[.1, .2, .3],
                                                                   final_train_loss=1, final_valid_loss=6, final_accuracy=.3, step_every=3)
    assert h['step_loss'] == [float(f'{i + 1/3:.6g}') for i in range(0, 2001, 3)]


# what is said on the way, and who may work

def record_of(seed=0, losses=(3., 2., 1.)): return dict(id=f'id {seed}', experiment='e', arm='a', seed=seed, step_loss=list(losses))

def test_a_finished_trial_is_said_with_its_last_loss_and_the_time_that_is_left():
    assert lab.progress_line(record_of(), 1, 4, 10.) == "1/4 e 'a' seed 0: loss 1, about 00:30 left"
    assert lab.progress_line(record_of(), 2, 4, 10.) == "2/4 e 'a' seed 0: loss 1, about 00:10 left"
    assert lab.progress_line(record_of(2, ()), 4, 4, 10.) == "4/4 e 'a' seed 2: loss nan"

def outcomes():
    failed = replace(tiny, arm='bad')
    return [('id 0', record_of(), None), (failed.id, None, lab.failure_of(failed, ValueError('no'))), ('late', None, None), ('id 1', record_of(1), None)]

def test_what_comes_is_said_where_one_listens_and_failures_are_warned_of_where_not(capsys):
    wanted = {'id 0': record_of(), 'id 1': record_of(1)}
    assert lab.collect(outcomes(), 4, verbose=True) == wanted
    first, failed, last = capsys.readouterr().out.splitlines()
    assert first.startswith("1/4 e 'a' seed 0: loss 1, about") and failed == "tiny 'bad' seed 0 failed: ValueError: no" and last.startswith('2/4')
    with pytest.warns(UserWarning) as warned: assert lab.collect(outcomes(), 4, verbose=False) == wanted
    assert [str(w.message) for w in warned] == [failed] and capsys.readouterr().out == ''

@pytest.mark.parametrize('epoch, every, said', [(0, 1, 'x epoch 1/4, about 00:30 left\n'), (3, 1, 'x epoch 4/4, about 00:00 left\n'), (0, 99, '')])
def test_a_long_trial_says_which_epoch_is_done_and_how_long_the_rest_will_take(capsys, monkeypatch, epoch, every, said):
    monkeypatch.setattr(lab, 'time', clock := Time())
    c = lab.Clock(every=every, name='x ')
    assert (c.seconds, c.longest, c.processes) == (0, 0, 1)
    stand_in = SimpleNamespace(**vars(c), dls=SimpleNamespace(device='cpu'), epoch=epoch, n_epoch=4)
    stand_in.began, stand_in.seconds = clock.monotonic(), 10*epoch
    clock.now += 10
    lab.Clock.after_epoch(stand_in)
    assert capsys.readouterr().out == said and (stand_in.seconds, stand_in.longest) == (10*(epoch + 1), 10) and stand_in.peak > 2**20

def test_the_peak_is_what_the_system_counted_in_bytes():
    if not sys.platform.startswith('linux'): pytest.skip('no /proc')
    highest = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    assert lab.peak_memory()['peak_memory'] == pytest.approx(1024*int(highest[1]), rel=.1)

def test_memory_that_is_not_known_counts_as_none(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'win32')
    assert lab.peak_memory() == dict(peak_memory=None, memory_of='process')
    stand_in = SimpleNamespace(**vars(lab.Clock()), dls=SimpleNamespace(device='cpu'), epoch=0, n_epoch=4, began=0)
    lab.Clock.after_epoch(stand_in)
    assert stand_in.peak == 0

def test_a_trial_is_silent_and_leaves_nothing_but_its_record(tmp_path, capsys):
    record = run_trial(tiny, tmp_path)
    assert capsys.readouterr().out == '' and record['peak_memory'] > 2**20 and 0 < record['longest_epoch'] < record['seconds']
    assert run_trial(tiny, tmp_path) == record and not lab.checkpoint_folder(tiny, tmp_path).exists()

def test_a_bar_is_drawn_where_it_is_asked_for_and_nowhere_else(tmp_path, monkeypatch):
    silenced = []
    def silence(what): return lambda: nullcontext(silenced.append(what))
    learn = SimpleNamespace(no_bar=silence('bar'), no_logging=silence('lines'), dls=SimpleNamespace(device=torch.device('cpu')), recorder=SimpleNamespace(values=[]))
    for name, value in dict(build_learner=learn, fit_trial=None, provenance=None).items(): monkeypatch.setattr(lab, name, lambda *args, value=value, **kwargs: value)
    assert lab.train(tiny, tmp_path, 1, None, True, math.inf) is None and silenced == []
    assert lab.train(tiny, tmp_path, 1, None, False, math.inf) is None and silenced == ['bar', 'lines']

def test_what_a_sweep_does_unless_told_otherwise(tmp_path, monkeypatch):
    "One process, without an end, in silence; what failed is not tried again; threads are shared between processes"
    seen = []
    def instead(trials, folder, n_jobs, deadline, bar, every):
        seen.append((len(trials), n_jobs, deadline and deadline - time.time(), bar, every, {threads for _, threads in lab.planned(folder).values()}))
        return []
    monkeypatch.setattr(lab, 'side_by_side', instead)
    monkeypatch.setattr(lab.torch, 'get_num_threads', lambda: 6)
    def go(folder, **kw): return sweep([tiny, replace(tiny, seed=1)], tmp_path/folder, **kw)
    go('a'), go('b', n_jobs=2, verbose=True), go('c', budget_minutes=2, n_jobs=-1)
    lab.append(lab.failures_file(tmp_path/'a'), lab.failure_of(tiny, ValueError('no')))
    go('a'), go('a', retry=True)
    assert seen[:2] == [(2, 1, None, False, math.inf, {6}), (2, 2, None, False, 30, {3})] and [s[0] for s in seen[3:5]] == [1, 2]
    monkeypatch.setattr(lab, 'bars_visible', lambda: True)
    go('d', verbose=True), go('d', verbose=True, n_jobs=2), go('d')
    assert [s[3:5] for s in seen[5:]] == [(True, math.inf), (False, 30), (False, math.inf)]
    assert seen[2][1] == -1 and seen[2][2] == pytest.approx(120, abs=5) and seen[2][5] == {max(1, 6//lab.effective_n_jobs(-1))}

class Cluster(SimpleNamespace):
    "Stands for a client: workers by address, with their names, threads and versions"
    scheduler = SimpleNamespace(address='tcp://s:1')
    def scheduler_info(self, n_workers): return n_workers == -1 and dict(workers={a: dict(name=name, nthreads=n) for a, (name, n, _) in self.workers.items()})
    def run(self, *args, on_error): return {a: version for a, (*_, version) in self.workers.items()}

def test_who_runs_trials_elsewhere_is_named_by_name_and_address():
    good, here = ('tcp://h:1', 1, resnotes.__version__), resnotes.__version__
    assert lab.check_workers(Cluster(workers={'tcp://h:1': good, 'tcp://h:2': ('two', 1, here)})) == ['tcp://h:1', 'tcp://h:2']
    with pytest.raises(ValueError, match=r"\{'tcp://h:1': 1, 'two \(tcp://h:2\)': 4\}"): lab.check_workers(Cluster(workers={'tcp://h:1': good, 'tcp://h:2': ('two', 4, here)}))
    with pytest.raises(ValueError, match=rf'must have resnotes {here}: two \(tcp://h:2\) has 0.0$'): lab.check_workers(Cluster(workers={'tcp://h:1': good, 'tcp://h:2': ('two', 1, '0.0')}))
    with pytest.raises(ValueError, match=r'tcp://h:1 has none \(no such module\)'): lab.check_workers(Cluster(workers={'tcp://h:1': ('tcp://h:1', 1, ImportError('no such module'))}))
    with pytest.raises(ValueError, match='tcp://s:1 must have workers'): lab.check_workers(Cluster(workers={}))
