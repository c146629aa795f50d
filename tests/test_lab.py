"The laboratory under attack: torn lines, full disks, writers side by side, processes killed at any moment, and statistics at their edges."
import errno, json, math, os, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

import resnotes, resnotes.lab as lab
from resnotes.experiments import Trial
from resnotes.lab import (append, commit, fingerprint, from_line, load, main_metric, paired, plan, provenance, recorded, report,
                          results, run, sentence, summary, sweep, to_line, unfinished)

tiny = Trial('tiny', arm='sgd', preset='smoke', seed=0, data='digits', data_args=dict(valid_pct=.9), model='tower',
             model_args=dict(depth=2, batch_norm=True), epochs=2, lr=.05, schedule='one_cycle')
measured = {'seconds', 'longest_epoch', 'processes', 'peak_memory', 'finished'}

pytestmark = pytest.mark.usefixtures('one_thread')

def outcome(record): return {k: v for k, v in record.items() if k not in measured}
def same(a, b): return to_line(outcome(a)) == to_line(outcome(b))  # as bytes, for NaN is not equal to itself


# lines

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda s: s not in lab.non_finite),
                     lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20)

@given(st.dictionaries(st.text(), plain, max_size=5))
def test_lines_are_legal_and_lose_nothing(record):
    line = to_line(record)
    assert line.count(b'\n') == 1 and line.endswith(b'\n')
    json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
    assert repr(from_line(line)) == repr(record)

def test_scalars_of_numpy_and_torch_become_numbers():
    assert from_line(to_line({'a': np.float32(.5), 'b': torch.tensor(2), 'c': (np.int64(3), torch.tensor(math.inf)), 4: np.bool_(True)})) == {
        'a': .5, 'b': 2, 'c': [3, math.inf], '4': True}

@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 40), rubbish=st.sampled_from([b'', b'\0'*7, b'\xff{']))
def test_a_file_cut_anywhere_loses_only_the_torn_record(tmp_path_factory, cut, rubbish):
    path = tmp_path_factory.mktemp('cut')/'x.jsonl'
    for i in range(3): append(path, {'i': i, 'text': 'zeile\n'})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut] + (rubbish if not whole[:-cut].endswith(b'\n') else b''))
    keep = load(path)
    assert keep == [{'i': i, 'text': 'zeile\n'} for i in range(len(keep))] and len(keep) >= 3 - math.ceil(cut*3/len(whole))
    before = path.read_bytes()
    append(path, {'i': 9})
    assert load(path) == keep + [{'i': 9}]
    whole_lines = before[:before.rfind(b'\n') + 1]
    assert path.read_bytes().startswith(whole_lines), 'what was whole is never rewritten'

def test_a_whole_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path/'x.jsonl'
    path.write_bytes(b'{"i": 0}\n{"i": 1}')
    assert load(path) == [{'i': 0}, {'i': 1}]
    append(path, {'i': 2})
    assert [r['i'] for r in load(path)] == [0, 1, 2]

def test_damage_before_the_end_is_named(tmp_path):
    path = tmp_path/'x.jsonl'
    path.write_bytes(b'{"i": 0}\n\n{"i": 1}\n')
    with pytest.raises(ValueError, match='x.jsonl, line 2 is damaged'): load(path)
    assert load(tmp_path/'none.jsonl') == []

def test_refused_records_leave_no_trace(tmp_path):
    with pytest.raises(TypeError): append(tmp_path/'x.jsonl', {'model': object()})
    assert list(tmp_path.iterdir()) == []


# full disks

class Full:
    "A file on a disk that has room for `room` more bytes; then the write is cut short, and the next one fails"
    def __init__(self, file, room): self.file, self.room = file, room
    def __enter__(self): return self
    def __exit__(self, *args): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, data):
        if not self.room: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = self.file.write(data[:self.room])
        self.room -= n
        return n

@pytest.mark.parametrize('room', [0, 1, 30, 62])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, room):
    path = tmp_path/'x.jsonl'
    append(path, {'i': 0})
    before = path.read_bytes()
    monkeypatch.setattr(lab, 'open', lambda *a, **k: Full(open(*a, **k), room), raising=False)
    with pytest.raises(OSError, match='No space left'): append(path, {'i': 1, 'pad': 'x'*100})
    assert path.read_bytes() == before
    monkeypatch.undo()
    append(path, {'i': 2})
    assert [r['i'] for r in load(path)] == [0, 2]

def test_a_failing_sync_takes_the_line_back(tmp_path, monkeypatch):
    def fail(fd): raise OSError(errno.EIO, 'input/output error')
    path = tmp_path/'x.jsonl'
    append(path, {'i': 0})
    monkeypatch.setattr(lab.os, 'fsync', fail)
    with pytest.raises(OSError): append(path, {'i': 1})
    assert load(path) == [{'i': 0}]

limited = '''
import resource, sys
from pathlib import Path
from resnotes.lab import Trial, append, from_line, run
trial, root = Trial(**from_line(sys.argv[1])), Path(sys.argv[2])
append(root/'record'/'tiny.jsonl', {'id': 'another', 'arm': '', 'preset': '', 'pad': 'x'*300_000})
for name, limit in (('checkpoint', 1000), ('record', 300_200)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try: run(trial, root/name)
    except OSError as e: print(name, e.strerror)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run(trial, root/name)
'''

def test_a_trial_survives_a_full_disk_at_its_checkpoint_and_at_its_record(tmp_path):
    out = subprocess.run([sys.executable, '-c', limited, to_line(tiny.settings()).decode(), tmp_path],
                         capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines() == ['checkpoint File too large', 'record No space left on device']
    want = run(tiny, tmp_path/'want')
    for name in ('checkpoint', 'record'): assert same(recorded(tiny, tmp_path/name), want) and unfinished(tmp_path/name) == []


# writers side by side

def forked(function, *args):
    "Process id of a child that runs `function` and exits"
    pid = os.fork()
    if pid: return pid
    try: function(*args)
    except BaseException: os._exit(1)
    os._exit(0)

def write(path, writer, n, size):
    for i in range(n): append(path, {'writer': writer, 'i': i, 'pad': 'x'*(size*(i % 5))})

def test_many_writers_lose_and_mix_nothing(tmp_path):
    path, n = tmp_path/'x.jsonl', 40
    writers = [forked(write, path, w, n, 40_000) for w in range(4)]
    while load(path) == []: time.sleep(.01)
    assert all(len(r) == 3 for r in load(path)), 'a reader sees whole records while others write'
    assert [os.waitpid(pid, 0)[1] for pid in writers] == [0]*4
    records = load(path)
    assert all(len(r['pad']) == 40_000*(r['i'] % 5) for r in records)
    for w in range(4): assert [r['i'] for r in records if r['writer'] == w] == list(range(n))

def test_killed_writers_harm_only_their_own_last_line(tmp_path):
    path, n, rng = tmp_path/'x.jsonl', 60, np.random.default_rng(0)
    survivor = forked(write, path, 'survivor', n, 30_000)
    for k in range(25):
        pid = forked(write, path, k, n, 60_000)
        time.sleep(rng.uniform(0, .03))
        os.kill(pid, 9), os.waitpid(pid, 0)
    assert os.waitpid(survivor, 0)[1] == 0
    append(path, {'writer': 'last'})
    records = load(path)
    assert [r['i'] for r in records if r['writer'] == 'survivor'] == list(range(n))
    for k in range(25): assert [r['i'] for r in records if r['writer'] == k] == list(range(sum(r['writer'] == k for r in records)))
    assert len([k for k in range(25) if any(r['writer'] == k for r in records)]) > 1 and records[-1] == {'writer': 'last'}


# killed at any moment

chain = Path(__file__).with_name('crash_chain.py')

@pytest.fixture(scope='module')
def crashes(tmp_path_factory):
    "What `crash_chain.py` reports: one process that has imported everything forks children and kills them"
    folder = tmp_path_factory.mktemp('crashes')
    out = subprocess.run([sys.executable, chain, folder], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert out.returncode == 0, out.stdout + out.stderr
    return json.loads(out.stdout.splitlines()[-1])

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
    assert not clock.late() and not lab.Clock().late()
    clock.longest = 110
    assert clock.late() and lab.Clock(time.time() + 100, known=110).late() and lab.Clock(time.time()).late()

def test_no_epoch_is_begun_that_would_end_too_late(tmp_path):
    trial = replace(tiny, epochs=5000)
    deadline = time.time() + 5
    assert run(trial, tmp_path, deadline) is None
    stopped = time.time()
    def kept(): return torch.load(tmp_path/'checkpoints'/trial.id/'resume.pt', weights_only=True)
    done, clock = kept()['done'], kept()['callbacks']['clock']
    assert 1 <= done < trial.epochs and unfinished(tmp_path) == [trial]
    assert 0 < clock['longest'] <= clock['seconds'] < 5 + clock['longest'] and stopped < deadline + clock['longest'] + 5
    assert run(trial, tmp_path, time.time() + clock['longest']/2) is None
    assert kept()['done'] == done, 'the longest epoch is remembered'

def test_seconds_and_longest_epoch_are_carried_over_an_interruption(tmp_path, monkeypatch):
    trial, whole = replace(tiny, epochs=4), lab.Clock.before_epoch
    def slow_then_interrupted(self):
        if self.epoch == 2: raise KeyboardInterrupt
        whole(self)
        time.sleep(.5)
    with monkeypatch.context() as m:
        m.setattr(lab.Clock, 'before_epoch', slow_then_interrupted)
        with pytest.raises(KeyboardInterrupt): run(trial, tmp_path)
    record = run(trial, tmp_path)
    assert record['processes'] == 2 and record['longest_epoch'] > .5 and record['seconds'] > 1 + .001
    assert len(record['accuracy']) == 4

def test_a_trial_like_recorded_ones_is_not_begun_too_late(tmp_path):
    first = run(tiny, tmp_path)
    assert run(replace(tiny, seed=1), tmp_path, deadline=time.time() + first['longest_epoch']/2) is None
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
    with pytest.raises(TypeError, match='trials must hold `Trial`s'): run(tiny.settings(), tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_columns_that_results_adds(tmp_path):
    record = dict(id='a', arm='a', epochs=2, step_loss=[9., 5., 3., 1.], final_train_loss=1., additions=dict(lost_before=.25, layer='x'), model_args=dict(c=.5))
    append(tmp_path/'x.jsonl', record)
    append(tmp_path/'x.jsonl', record | dict(id='b', step_loss=[1., math.inf], additions=dict(lost_before=math.nan)))
    runs = results('x', tmp_path)
    assert runs.final_epoch_loss.tolist() == [2, math.inf] and runs.additions_lost_before[0] == .25
    assert lab.outcomes(runs) == ['final_train_loss', 'additions_lost_before', 'final_epoch_loss']

def test_threads_of_the_first_start_are_kept(tmp_path):
    before = torch.get_num_threads()
    plan([tiny], tmp_path, threads=1)
    plan([tiny], tmp_path, threads=3)
    try:
        torch.set_num_threads(2)
        assert run(tiny, tmp_path)['threads'] == 1 and torch.get_num_threads() == 2
        plan([replace(tiny, seed=1)], tmp_path)
        assert lab._planned(tmp_path)[replace(tiny, seed=1).id][1] == 2
    finally: torch.set_num_threads(before)

def test_dask_workers_make_the_same_records(tmp_path, capfd):
    distributed = pytest.importorskip('distributed')
    trials = [replace(tiny, seed=s) for s in (0, 1)]
    want = sweep(trials, tmp_path/'here')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster):
        got = sweep(trials, tmp_path/'dask', backend='dask')
    assert [same(a, b) for a, b in zip(got, want, strict=True)] == [True, True]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster, distributed.Client(cluster):
        with pytest.raises(ValueError, match='one thread each'): sweep(trials, tmp_path/'threads', backend='dask')
    with pytest.raises(ValueError): sweep(trials, tmp_path/'none', backend='dask')


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
    r = run(replace(tiny, lr=1e15, schedule='constant', model_args=dict(depth=2)), tmp_path)
    assert not math.isfinite(r['final_valid_loss'])
    line = (tmp_path/'tiny.jsonl').read_bytes()
    json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert not math.isfinite(load(tmp_path/'tiny.jsonl')[0]['final_valid_loss'])
    assert summary(results('tiny', tmp_path), 'final_valid_loss').diverged.tolist() == [1]


# statistics

def table(a, b, **kw):
    return pd.DataFrame(dict(preset='smoke', arm=['a']*len(a) + ['b']*len(b), seed=[*range(len(a)), *range(len(b))], final_accuracy=[*a, *b]) | kw)

@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8), level=st.floats(.5, .99))
def test_paired_is_scipys_paired_test(pairs, level):
    a, b = zip(*pairs)
    c = paired(table(a, b), 'a', 'b', level=level)
    if np.std(np.subtract(a, b)) > 1e-6:
        want = stats.ttest_rel(a, b)
        ci = want.confidence_interval(level)
        assert np.allclose([c['p'], c['low'], c['high']], [want.pvalue, ci.low, ci.high], atol=1e-8)
        if abs(want.pvalue - (1 - level)) > 1e-9: assert ('No difference' in sentence(c)) == (want.pvalue > 1 - level)
    back = paired(table(b, a), 'a', 'b', level=level)
    assert np.isclose(back['difference'], -c['difference'], atol=1e-12)

def test_paired_goes_by_seed_and_not_by_order():
    runs = table([.1, .2, .4], [.2, .4, .1])
    shuffled = runs.iloc[[5, 0, 3, 2, 4, 1]]
    assert paired(runs, 'a', 'b') == paired(shuffled, 'a', 'b')

@pytest.mark.parametrize('a, b, said', [
    ([.5], [.1], '1 seed: no test is possible'), ([.5, .6], [.4, .5], 'no test is possible'), ([.5, .5], [.5, .5], 'no test is possible'),
    ([.5, .6, math.nan], [.1, .1, .2], '1 more seed'), ([.9, .8, math.inf, .7], [.1, .2, .2], '2 more seed'), ([math.nan], [.1], 'nothing is compared'),
    ([.5, .61, .72, .8], [.1, .2, .3, .4], 'a is higher than b'), ([.1, .2, .3, .4], [.5, .61, .72, .8], 'a is lower than b')])
def test_sentences_at_the_edges(a, b, said):
    text = sentence(paired(table(a, b), 'a', 'b'))
    assert said in text and 'nan' not in text
    if 'no test' in said or 'nothing' in said: assert 'higher' not in text or text.startswith('No difference is shown')

def test_paired_refuses():
    runs = table([.1, .2], [.3, .4])
    with pytest.raises(ValueError, match="a must be one of 'a', 'b'"): paired(runs, 'c', 'b')
    with pytest.raises(ValueError, match="b must be one of 'b'"): paired(runs, 'a', 'a')
    with pytest.raises(ValueError, match='of must be one of'): paired(runs, 'a', 'b', of='beauty')
    with pytest.raises(ValueError, match='one run per arm and seed'): paired(pd.concat([runs, runs]), 'a', 'b')

def test_summary_counts_what_diverged():
    s = summary(table([.1, math.nan, .3], [math.inf, -math.inf, math.nan]))
    assert s.runs.tolist() == [2, 0] and s.diverged.tolist() == [1, 3] and s['mean']['a'] == pytest.approx(.2) and math.isnan(s['mean']['b'])
    two = summary(table([.1, .2], [.3, .4]).assign(depth=[1, 2, 1, 2]), by=['arm', 'depth'])
    assert len(two) == 4 and two.diverged.tolist() == [0]*4

def test_main_metric_prefers_a_metric_to_a_loss():
    assert main_metric({'final_train_loss': 1, 'final_valid_loss': 1, 'final_iou': 1, 'final_tgs_score': 1}) == 'final_iou'
    assert main_metric({'final_train_loss': 1, 'final_valid_loss': 1}) == 'final_valid_loss'

def test_a_report_is_never_nan():
    cases = {'1 run, no interval': table([.5], [.1]), 'all 2 runs diverged': table([math.nan]*2, [.1, .2]), 'the run diverged': table([math.nan], [.1]),
             '1 run, no interval, 1 more diverged': table([math.inf, .3], [.1, .2]), 'no run yet': table([.1, .2], []), '1 more seed is left out': table([.1, .2, .4], [.3, .1])}
    for said, runs in cases.items():
        text = report(runs, pairs=[('a', 'b')])
        assert said in text and 'nan' not in text, text
    assert report(table([.1, .2], [])).splitlines()[-1].startswith('  a  '), 'one arm: a table and nothing to compare'
    both = pd.concat([table([.1, .2], [.3, .5]), table([.1, .2], [.3, .5])])
    with pytest.raises(ValueError, match='one preset and one setting'): report(both)

def test_a_report_compares_the_pairs_it_is_given_at_their_common_level():
    runs = pd.concat([table([.1, .2, .3], [.7, .8, .8]), table([], [.4, .5, .7]).replace({'arm': {'b': 'c'}})])
    assert '97.5 %' in report(runs)
    text = report(runs, pairs=[('c', 'b')])
    assert 'c is lower than b' in text and text.count('paired') == 1 and '(95 % interval' in text

def test_report_keeps_presets_apart_and_states_the_level():
    runs = pd.concat([table([.5, .61, .72], [.1, .2, .3]), table([.5, .5, .4], [.4, .5, .5]).assign(preset='cpu'),
                      table([], [.7, .8, .9]).replace({'arm': {'b': 'c'}})])
    text = report(runs)
    assert 'preset smoke' in text and 'preset cpu' in text and '97.5 % interval' in text
    assert text.count('paired t test') == 3 and 'c is higher than a' in text
