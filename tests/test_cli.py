"The command line as a shell sees it: output, exit codes, interruption, and a machine without the book's repository."
import argparse, contextlib, json, os, re, runpy, signal, subprocess, sys, time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import psutil
import pytest

import resnotes
from resnotes import cli, lab, records, trial
from resnotes.cli import main
from resnotes.experiments import experiments
from resnotes.ledger import claim_numbers, read_ledger, verdict_names
from resnotes.records import append, load, results, to_line
from resnotes.trial import ids_with_seeds, presets

root = Path(__file__).parents[1]
env = {**os.environ, 'OMP_NUM_THREADS': '1'}


pytestmark = pytest.mark.usefixtures('one_thread')

def shell(capsys, line):
    "Exit code and both outputs of a command line, in this process"
    command, *args = line.split()
    try: code = main(command, args)
    except SystemExit as e: code = e.code
    return code, *capsys.readouterr()

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.fixture
def quick(monkeypatch):
    "The trials of one experiment shrunk to one block and one epoch"
    def trials(self, preset, seeds=None, runs=None):
        made = whole(self, preset, seeds, runs)
        return [replace(t, epochs=1, model_args=dict(depth=1)) for t in made] if self.name == 'taki-cifar' else made
    whole = cli.experiments['taki-cifar'].trials.__func__
    monkeypatch.setattr(type(cli.experiments['taki-cifar']), 'trials', trials)


# arguments

@pytest.mark.parametrize('line, said', [
    ('run', 'EXPERIMENT'), ('run taki', "'taki-cifar'"), ('run taki-cifar --preset huge', "'smoke', 'cpu', 'gpu'"), ('run taki-cifar --seeds two', "0-4"),
    ('run taki-cifar --seeds 3-1', 'ranges upwards'), ('run taki-cifar --seeds 1,1', 'none twice'), ('run taki-cifar --budget-minutes 0', 'above 0'),
    ('run taki-cifar --budget-minutes inf', 'above 0'), ('run taki-cifar --jobs 0', 'at least 1'), ('run taki-cifar --colour red', '--colour'),
    ('resume nothing', "'taki-cifar'"), ('audit strict_unet48 --shape 2x1', '2,1,101,101'), ('audit no_such_net', 'strict_unet48'),
    ('audit no_such_module:f', 'no_such_module'), ('audit math:no_such_function', 'no_such_function'), ('audit torch.nn:Flatten', '--shape'),
    ('audit torch.nn:Linear --shape 2,3', 'torch.nn:Linear must take no arguments'), ('audit os:system --shape 2,3', 'os:system must take no arguments'),
    ('audit wrn_99999994_1', 'must be at most 10000'), ('audit wrn_16_4 --shape 99999999999999999999,3', 'whole numbers'),
    ('audit wrn_16_4 --shape 999999999,3,32,32', 'at most 268435456 numbers'), ('run taki-cifar --seeds 0-99999999999', 'at most 10000 seeds'),
    ('run taki-cifar --seeds 1' + 5000*'0', 'whole numbers'), ('run taki-cifar --jobs 99999999', 'for each core here'),
    ('run taki-cifar --cluster nowhere://1', 'cluster must be the address of a running dask scheduler'),
    ('audit math:pi --shape 2,1', 'got float'), ('audit collections:Counter --shape 2,1', 'must be or make an nn.Module, got Counter'),
    ('audit strict_unet48 --shape 2,3,48,48', 'got (2, 3, 48, 48)'), ('audit torch.nn:Flatten --shape 2,1,8', 'shape 2,1,8'),
    ('claims --claim Z99', 'B04'), ('report width', "there are none, got 'width'"), ('list taki-cifar', 'taki-cifar')])
def test_wrong_arguments_end_in_two_with_what_is_allowed(capsys, folder, line, said):
    code, out, err = shell(capsys, line)
    assert code == 2 and said in err and 'Traceback' not in err
    assert list(folder.iterdir()) == [], 'nothing was begun'

@pytest.mark.parametrize('line', ['list', 'report taki-cifar', 'run taki-cifar', 'resume'])
def test_a_file_is_no_folder_of_results(capsys, folder, line):
    Path('a').touch(), Path('b').symlink_to('nowhere')
    for name in 'ab':
        code, out, err = shell(capsys, f'{line} --folder {name}')
        assert code == 2 and f"must be a folder, got '{name}'" in err

def program_of(capsys, monkeypatch, module, *args):
    "Exit code and both outputs of `python -m module`"
    monkeypatch.setattr(sys, 'argv', ['resnotes', *args])
    with pytest.raises(SystemExit) as e: runpy.run_module(module, run_name='__main__')
    return e.value.code, *capsys.readouterr()

pytest_ignores = pytest.mark.filterwarnings("ignore:'resnotes.cli' found in sys.modules")

@pytest_ignores
@pytest.mark.parametrize('module', ['resnotes', 'resnotes.cli'])
def test_both_modules_are_the_program(capsys, folder, monkeypatch, module):
    code, out, err = program_of(capsys, monkeypatch, module, '--help')
    for name in cli.commands: assert name in out
    assert code == 0 and '130' in out and '143' in out
    assert program_of(capsys, monkeypatch, module, '--version')[:2] == (0, f'resnotes {resnotes.__version__}\n')
    code, out, err = program_of(capsys, monkeypatch, module, 'report', 'taki-cifar')
    assert code == 1 and err.startswith('No results of taki-cifar')
    assert program_of(capsys, monkeypatch, module, 'report', 'nosuch')[0] == 2
    monkeypatch.setitem(cli.commands, 'later', lambda: 7)   # a command registered after `main` was defined
    assert program_of(capsys, monkeypatch, module, 'later')[0] == 7

@pytest.mark.parametrize('args', [[], ['jump'], ['--preset', 'smoke']])
def test_the_first_word_must_be_a_command(capsys, monkeypatch, args):
    monkeypatch.setattr(sys, 'argv', ['resnotes', *args])
    with pytest.raises(SystemExit) as e: main()
    assert e.value.code == 2 and 'resume' in capsys.readouterr().err

def test_as_many_jobs_as_are_allowed():
    most = cli.jobs_per_core*os.cpu_count()
    assert (cli.job_count(f'{most}'), cli.job_count('-1')) == (most, -1)
    with pytest.raises(argparse.ArgumentTypeError, match=f'at most {most}, '): cli.job_count(f'{most + 1}')

def test_a_command_has_its_own_help(capsys):
    code, out, err = shell(capsys, 'run --help')
    assert code == 0 and '--budget-minutes' in out and 'such as 0-4' in out and out.startswith('usage: resnotes run')


# experiments

def test_run_budget_resume_report(capsys, folder, quick):
    code, out, err = shell(capsys, 'run taki-cifar --seeds 0,1 --budget-minutes 0.00001')
    n = 2*len(experiments['taki-cifar'].arms('smoke'))
    assert code == 3 and f'0 of {n} trials' in out and 'resnotes resume' in out
    code, out, err = shell(capsys, 'run taki-cifar --seeds 0 --budget-minutes 600')
    assert code == 0 and f'{n//2}/{n//2}' in out
    code, out, err = shell(capsys, 'resume taki-cifar')
    assert code == 0 and f'{n//2} trials are unfinished' in out and f'{n//2}/{n//2}' in out and 'left' in out
    assert shell(capsys, 'resume')[:2] == (0, 'Nothing is unfinished in results\n')
    code, out, err = shell(capsys, 'run taki-cifar --seeds 0-1')
    assert code == 0 and f'{n} trials, {n} recorded already' in out and 'paired t test' in out
    code, other, err = shell(capsys, 'report taki-cifar --of final_valid_loss')
    assert code == 0 and 'final_valid_loss' in other and 'final_valid_loss' not in out
    code, out, err = shell(capsys, 'report taki-cifar --of beauty')
    assert code == 2 and 'of must be one of final_train_loss' in err and "got 'beauty'" in err and 'data_args' not in err
    code, out, err = shell(capsys, 'report width')
    assert code == 2 and "have results in results (taki-cifar), got 'width'" in err
    assert f'smoke {n//2}/' in shell(capsys, 'list')[1]
    assert len(load('results/taki-cifar.jsonl')) == n

def test_report_leaves_out_records_of_other_settings(capsys, folder, quick):
    shell(capsys, 'run taki-cifar --seeds 0,1')
    old = load('results/taki-cifar.jsonl')[0]
    append('results/taki-cifar.jsonl', old | dict(id='0'*12, lr=9.))
    code, out, err = shell(capsys, 'report taki-cifar')
    assert code == 0 and out.startswith('1 records have settings')
    arms = [l.split('  ')[1] for l in out.splitlines() if '±' in l]
    assert arms == list(experiments['taki-cifar'].arms('smoke')), 'in the order of the experiment'

def test_a_report_says_what_is_missing(capsys, folder, quick):
    assert shell(capsys, 'report taki-cifar') == (1, '', 'No results of taki-cifar in results. Make some with: resnotes run taki-cifar\n')
    Path('results').mkdir()
    Path('results/taki-cifar.jsonl').touch()   # what a full disk leaves at the very first record
    code, out, err = shell(capsys, 'report taki-cifar')
    assert code == 1 and err.startswith('No results of taki-cifar')
    he, *_ = experiments['taki-cifar'].trials('smoke')
    lab.run_trial(he)
    code, out, err = shell(capsys, 'report taki-cifar')
    assert code == 0 and '1 run, no interval' in out and 'nan' not in out
    assert [l.split('  ')[1] for l in out.splitlines() if l.endswith('no run yet')] == ['depth-scaled', 'he, batch norm']

def test_a_report_of_foreign_or_damaged_lines_fails_plainly(capsys, folder):
    Path('results').mkdir()
    Path('results/odd.jsonl').write_text('{"final_accuracy": 1}\n')
    code, out, err = shell(capsys, 'report odd')
    assert code == 1 and err == 'resnotes report: results/odd.jsonl, line 1: the field id is missing\n'
    Path('results/odd.jsonl').write_text('{"a": 1\n{}\n')
    code, out, err = shell(capsys, 'report odd')
    assert code == 1 and 'line 1 is damaged' in err

@pytest.mark.parametrize('line, field', [('7', 'dictionary'), ('null', 'dictionary'), ('[1, 2]', 'dictionary'), ('['*100_000, 'nested'), ('{"arm": "he"}', 'id'), ('{"id": 3}', 'id')])
def test_no_command_ends_in_a_traceback_over_a_strange_line(capsys, folder, line, field):
    "Each names the file, the line and the field"
    Path('results').mkdir()
    Path('results/taki-cifar.jsonl').write_text('\n' + line + '\n')
    for command in ('list', 'report taki-cifar', 'run taki-cifar'):
        code, out, err = shell(capsys, command)
        assert code == 1 and 'taki-cifar.jsonl, line 2' in err and field in err, command
    Path('results/taki-cifar.jsonl').unlink()
    Path('results/checkpoints').mkdir()
    Path('results/checkpoints/planned.jsonl').write_text('\n' + line + '\n')
    for command in ('resume', 'run taki-cifar'):
        code, out, err = shell(capsys, command)
        assert code == 1 and 'planned.jsonl, line 2' in err, command

def plan_of(trials, threads=1): return json.dumps(dict(trials=trials, threads=threads)) + '\n'

def test_resume_passes_over_a_plan_that_is_none_and_goes_on(capsys, folder, quick):
    good = next(t for t in cli.experiments['taki-cifar'].trials('smoke'))
    bad = asdict(good) | dict(model_args=dict(depht=3))
    Path('results/checkpoints').mkdir(parents=True)
    Path('results/checkpoints/planned.jsonl').write_text(plan_of({'0'*12: bad}) + plan_of({'1'*12: dict(experiment='x', colour=1)}) + plan_of({good.id: asdict(good)}))
    code, out, err = shell(capsys, 'resume')
    assert code == 0 and '1 trials are unfinished' in out
    assert f"the plan {'0'*12} is passed over" in err and 'depht' in err and 'colour' in err and 'Traceback' not in err
    for plan, said in ((plan_of({'a': {}}), 'must name its experiment'), (plan_of({}, 0), 'threads must be at least 1'), (plan_of({}, 'two'), 'threads must be a int')):
        Path('results/checkpoints/planned.jsonl').write_text(plan)
        code, out, err = shell(capsys, 'resume')
        assert code == 1 and said in err and 'planned.jsonl' in err, err

def test_a_report_prints_nothing_that_a_terminal_obeys(capsys, folder):
    append('results/odd.jsonl', dict(id='a', arm='red\x1b[31m', preset='cpu', seed=0, final_accuracy=.5))
    code, out, err = shell(capsys, 'report odd')
    assert code == 0 and 'red' in out and '\x1b' not in out

def test_a_failing_trial_is_named_left_alone_and_tried_again(capsys, folder, quick, monkeypatch):
    he, scaled, normed = cli.experiments['taki-cifar'].trials('smoke')
    whole = lab.fit_trial
    def fails(learn, trial): return 1/0 if trial.arm == 'depth-scaled' else whole(learn, trial)
    monkeypatch.setattr(lab, 'fit_trial', fails)
    code, out, err = shell(capsys, 'run taki-cifar')
    assert code == 1 and "'depth-scaled' seed 0 failed: ZeroDivisionError" in out and '2/3' in out
    assert "'depth-scaled' seed 0 failed: ZeroDivisionError" in err and 'checkpoints/failures.jsonl' in err and 'resnotes resume --retry' in err
    assert {r['id'] for r in load('results/taki-cifar.jsonl')} == {he.id, normed.id}
    failure, = load('results/checkpoints/failures.jsonl')
    assert failure['id'] == scaled.id and 'fails(learn, trial)' in failure['traceback'] or '1/0' in failure['traceback']
    for command in ('resume', 'run taki-cifar'):
        code, out, err = shell(capsys, command)
        assert code == 1 and 'failed: ZeroDivisionError' in err and 'failed' not in out, 'it is named and not tried'
    assert len(load('results/checkpoints/failures.jsonl')) == 1
    assert shell(capsys, 'resume --retry')[0] == 1 and len(load('results/checkpoints/failures.jsonl')) == 2
    monkeypatch.setattr(lab, 'fit_trial', whole)
    code, out, err = shell(capsys, 'run taki-cifar --retry')
    assert (code, err) == (0, '') and len(load('results/taki-cifar.jsonl')) == 3 and shell(capsys, 'report taki-cifar')[1] in out
    assert shell(capsys, 'resume') == (0, 'Nothing is unfinished in results\n', '')

@pytest.mark.parametrize('name', experiments)
def test_what_an_experiment_compares_is_what_its_report_says(name, capsys, folder):
    "Of a scan, the arms that came to their second seed"
    e, seeds = experiments[name], Counter()
    fake = dict(final_accuracy=.5) | ({e.of: .5} if e.of else {})
    while left := e.trials('cpu', (0, 1), results(name, '.') if seeds else None)[seeds.total():]:
        for i, t in enumerate(left, seeds.total()):
            append(f'{name}.jsonl', dict(id=t.id, **asdict(t)) | {k: v + .01*i*(1 + t.seed) for k, v in fake.items()})
        seeds.update(t.arm for t in left)
    code, out, err = shell(capsys, f'report {name} --folder .')
    assert max(seeds.values()) == 2 and (e.scan or min(seeds.values()) == 2)
    compared = sum(seeds[a] == seeds[b] == 2 for a, b in e.pairs('cpu', results(name, '.')))
    assert code == 0 and out.count('paired t test over 2 seeds') == compared, out + err

def test_nobody_reads_any_more(folder):
    "In a child that ends as an interpreter does, by closing what it wrote to"
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writes, 1)
        os.dup2(os.open('err.txt', os.O_WRONLY | os.O_CREAT), 2)
        os.close(reads), os.close(writes)
        try:
            sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', closefd=False)
            code = main('list', [])
            sys.stdout.close(), sys.stderr.close()
        except BaseException: code = 99
        os._exit(code)
    os.close(reads), os.close(writes)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert Path('err.txt').read_text() == ''

@pytest.mark.parametrize('line, said', [('run taki-cifar --folder a/b', 'resnotes resume --folder a/b\n'), ('resume', 'resnotes resume\n'), ('list', 'Interrupted\n')])
def test_an_interruption_says_how_to_go_on(capsys, folder, monkeypatch, line, said):
    def interrupt(*args, **kwargs): raise KeyboardInterrupt
    for name in ('sweep', 'recorded_ids', 'unfinished', 'trials_left'): monkeypatch.setattr(cli, name, interrupt)
    code, out, err = shell(capsys, line)
    assert code == 130 and err.endswith(said)

@pytest.mark.parametrize('line, said', [('run taki-cifar', '\nEnded; every finished epoch is kept. Go on with: resnotes resume\n'), ('list', '\nEnded\n')])
def test_a_request_to_end_is_answered_as_an_interruption_is(capsys, folder, monkeypatch, line, said):
    before = signal.getsignal(signal.SIGTERM)
    def asked(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)
    for name in ('sweep', 'recorded_ids'): monkeypatch.setattr(cli, name, asked)
    code, out, err = shell(capsys, line)
    assert (code, err) == (143, said) and signal.getsignal(signal.SIGTERM) == before

def test_a_full_disk_is_one_line(capsys, folder, quick, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(lab, 'append', full)
    code, out, err = shell(capsys, 'run taki-cifar')
    assert code == 1 and err == 'resnotes run: [Errno 28] No space left on device\n'

def test_a_fault_of_the_program_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr(cli, 'sweep', lambda *a, **k: 1/0)
    with pytest.raises(ZeroDivisionError): main('run', ['taki-cifar'])

def test_progress_is_plain_lines_without_a_terminal(capsys, folder, monkeypatch):
    trial = replace(experiments['taki-cifar'].trials('smoke')[0], epochs=5, model_args=dict(depth=1))
    whole = lab.Clock
    monkeypatch.setattr(lab, 'Clock', lambda deadline, known, every, name: whole(deadline, known, every/1e6, name))
    lab.sweep([trial, replace(trial, seed=1)], verbose=True)
    out = capsys.readouterr().out
    assert '\r' not in out and '\x1b' not in out
    assert re.search(r"taki-cifar '.+' seed 0: epoch 3/5, about \d+:\d+ left", out)
    assert re.search(r"1/2 taki-cifar '.+' seed 0: loss [\d.]+, about \d+:\d+ left", out)
    assert not out.splitlines()[-1].endswith('left')

program = """
import signal, sys
from dataclasses import asdict, replace
from resnotes.cli import main
from resnotes.experiments import Experiment
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts into the background with interrupts ignored
whole = Experiment.trials
Experiment.trials = lambda *a: [replace(t, epochs=25, model_args=dict(depth=2)) for t in whole(*a)][:2]
sys.exit(main(sys.argv[1], sys.argv[2:]))
"""

@pytest.fixture
def left_alone(tmp_path_factory):
    "Weights of the trials of `program` when nothing interrupts them"
    trials = [replace(t, epochs=25, model_args=dict(depth=2)) for t in experiments['taki-cifar'].trials('smoke')][:2]
    return {r['id']: r['weights'] for r in lab.sweep(trials, tmp_path_factory.mktemp('alone'))}

def living(group):
    "The processes of a group that have not ended"
    def of_it(process):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return [process.pid for process in psutil.process_iter() if of_it(process)]

def begun(folder):
    "A run by two processes, half a second after its first checkpoint"
    args = [sys.executable, '-c', program, 'run', 'taki-cifar', '--jobs', '2']
    process = subprocess.Popen(args, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((folder/'results'/'checkpoints').glob('*/resume.pt')) and process.poll() is None: time.sleep(.01)
    time.sleep(.3)
    return process

def ended_with_its_workers(process, code):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and 'resnotes resume' in err, out + err
    late = time.monotonic() + 20
    while living(process.pid) and time.monotonic() < late: time.sleep(.1)
    return living(process.pid) == []

def test_interrupt_then_resume_ends_in_the_same_numbers(tmp_path, capsys, left_alone):
    process = begun(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: every process of the group gets it
    assert ended_with_its_workers(process, 130) and lab.unfinished(tmp_path/'results')
    code, out, err = shell(capsys, f"resume --folder {tmp_path/'results'}")
    assert code == 0 and lab.unfinished(tmp_path/'results') == [], out + err
    assert {r['id']: r['weights'] for r in load(tmp_path/'results'/'taki-cifar.jsonl')} == left_alone

def test_who_is_asked_to_end_ends_the_workers(tmp_path):
    "A queue asks the first process alone"
    process = begun(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert ended_with_its_workers(process, 143) and len(lab.unfinished(tmp_path/'results')) == 2


# tools

def test_claims_are_printed_by_source_verdict_or_number(capsys, folder):
    lines = shell(capsys, 'claims')[1].splitlines()
    assert [l.split()[0] for l in lines] == claim_numbers
    assert [l.split()[0] for l in shell(capsys, 'claims --source W')[1].splitlines()] == [f'W0{i}' for i in range(1, 9)]
    for outcome in verdict_names:
        assert main('claims', ['--verdict', outcome]) == 0
        assert capsys.readouterr().out.splitlines() == [l for l in lines if re.match(rf'... +{outcome}  ', l)]

@pytest.mark.parametrize('claim', ['b04', 'S12', 'B37'])
def test_a_single_claim_is_printed_with_its_checks_and_address(capsys, folder, claim):
    code, out, err = shell(capsys, f'claims --claim {claim}')
    c = read_ledger()[claim_numbers.index(claim.upper())]
    assert code == 0 and c.text in out and repr(c.verdict) in out and ('Central: ' in out) == bool(c.central)
    assert re.search(r'https://\S+/[a-z_]+\.html#[a-z][\w.-]+$', out.strip())

def test_bench_runs_the_driver(capsys, folder, monkeypatch):
    (folder/'benchmarks').mkdir(), (folder/'nbs').mkdir()
    (folder/'benchmarks'/'bench.py').write_text('open("ran", "w")')
    (folder/'benchmarks'/'bench_a.py').write_text('raise SystemExit(9)')
    monkeypatch.setattr(cli.resnotes, '__file__', str(folder/'resnotes'/'__init__.py'))
    assert shell(capsys, 'bench')[0] == 0 and (folder/'ran').exists()
    (folder/'benchmarks'/'bench.py').write_text('raise SystemExit(3)')
    assert shell(capsys, 'bench')[0] == 1

def test_a_list_names_the_claims_of_each_experiment(capsys, folder):
    lines = shell(capsys, 'list')[1].splitlines()
    for e, line in zip(experiments.values(), lines[1::2], strict=True):
        assert line == f'    {e.question}' + (f" [{', '.join(e.claims)}]" if e.claims else '')

@pytest.mark.parametrize('name', ['taki-cifar', 'rescue'])
def test_where_nothing_is_recorded_all_is_left(folder, name):
    trials, left, to_run = cli.trials_left(name, 'smoke', None, 'results')
    assert trials == left == to_run == experiments[name].trials('smoke') and experiments['rescue'].scan and list(folder.iterdir()) == []

def test_an_audit_takes_a_batch_of_two_of_the_network_s_own_shape(capsys, folder, monkeypatch):
    monkeypatch.setattr(cli, 'audit', lambda net, x: tuple(x.shape))
    assert shell(capsys, 'audit taki_tower3')[1] == f"{(2, *cli.networks.example_shape('taki_tower3'))}\n"

def test_audit_of_a_model_of_ones_own(capsys, folder, monkeypatch, tmp_path_factory):
    "A module of the folder one is in goes before others of its name, as with `python -m`"
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    (elsewhere/'mine.py').write_text('net = 0\n')
    monkeypatch.syspath_prepend(elsewhere)
    (folder/'mine.py').write_text('from resnotes.networks import build\ndef net(): return build("taki_tower3")\n')
    code, out, err = shell(capsys, 'audit mine:net --shape 2,1,8,8')
    assert code == 0 and out, err


# no repository around

def test_outside_of_the_repository_bench_says_where_it_is(capsys, monkeypatch):
    monkeypatch.setattr(cli.resnotes, '__file__', '/nowhere/resnotes/__init__.py')
    code, out, err = shell(capsys, 'bench')
    assert code == 1 and 'https://' in err


# many records

@pytest.mark.parametrize('name', ['taki-cifar', 'rescue'])
def test_a_report_makes_as_many_trials_for_many_seeds_as_for_few(capsys, folder, monkeypatch, name):
    "The work that grows with the file is to read its lines"
    e, made, read = experiments[name], [], []
    for n in (4, 40):
        path = Path(f'{n}/{name}.jsonl')
        path.parent.mkdir()
        fake = dict(final_accuracy=.5, final_epoch_loss=1.)
        known = [dict(id=t.id, **asdict(t)) | fake for t in e.trials('cpu', range(e.scan or 1))]
        best = e.trials('cpu', [e.scan or 1], pd.DataFrame(known))
        lines = known + [dict(id=i, **asdict(t)) | fake | dict(seed=s) for t in best for s in range(e.scan or 1, n)
                         for i in ids_with_seeds(t, [s])]
        path.write_bytes(b''.join(map(to_line, lines)))
        made.append(0), read.append(-len(lines))
        with monkeypatch.context() as patched:
            check, parse = trial.check_trial, json.loads
            def counted(t):
                made[-1] += 1
                return check(t)
            def parsed(line):
                read[-1] += 1
                return parse(line)
            patched.setattr(trial, 'check_trial', counted), patched.setattr(records.json, 'loads', parsed)
            code, out, err = shell(capsys, f'report {name} --folder {n}')
        assert code == 0 and 'left out' not in out and f'{n} runs' in out, out + err
    assert made[0] == made[1] > 0 and read[0] == read[1] < 5

def test_a_list_reads_ids_and_no_records(capsys, folder, monkeypatch):
    name = 'taki-cifar'
    for n in (10, 1000):
        Path(f'{n}').mkdir()
        Path(f'{n}/{name}.jsonl').write_bytes(b''.join(to_line(dict(id=f'{i:012x}', pad=list(range(99)))) for i in range(n)))
        read, parse = [], json.loads
        def counted(line):
            read.append(line)
            return parse(line)
        with monkeypatch.context() as patched:
            patched.setattr(records.json, 'loads', counted)
            assert shell(capsys, f'list --folder {n}')[0] == 0
        assert not [line for line in read if b'pad' in line]
