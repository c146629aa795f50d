"The benchmark: every row runs at a tiny size, and the records of the book hold every row. Nothing here is timed."
import math, re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
benchmarks = root/'benchmarks'
sys.path.insert(0, str(benchmarks))

import bench, timing
from resnotes.records import load

parts = 'losses', 'steps', 'memory', 'starts', 'depth', 'callbacks', 'data', 'lab'


def rows_of(part):
    "Names of the rows that a file holds, by its text"
    lines = (benchmarks/(f'{part}.py' if part == 'gpu' else f'bench_{part}.py')).read_text().splitlines()
    return [b.split('(')[0][4:] for a, b in zip(lines, lines[1:]) if a.startswith('@row(')]


def test_the_parts_are_those_of_the_driver(): assert parts == bench.modules


@pytest.mark.parametrize('part', parts)
def test_every_row_runs(part, tmp_path):
    names, out = rows_of(part), tmp_path/'smoke.jsonl'
    assert names
    done = subprocess.run([sys.executable, benchmarks/'bench.py', '--smoke', '--out', out, '--only', *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    sound(out, names)


def sound(out, names):
    "The records of a tiny run, each of them whole"
    found = load(out, id=str, row=str, what=str, beside=str)
    assert {r['row'] for r in found} == set(names) and len({r['id'] for r in found}) == len(found)
    for r in found:
        assert r['preset'] == 'smoke' and r['machine'] and r['torch'] and r['finished']
        if 'left_out' in r:
            assert r['left_out'] and 'median' not in r
            continue
        assert 0 < r['low'] <= r['median'] <= r['high'] < math.inf and r['runs'] >= 1
        if 'costs' in r: assert 0 < len(r['costs']) <= 10 and 0 < sum(share for _, share, _ in r['costs']) <= 1 + 1e-6
    return found


def on_gpu(*args):
    "The script for a GPU"
    return subprocess.run([sys.executable, benchmarks/'gpu.py', *args], capture_output=True, text=True)


def test_the_script_for_a_gpu_runs_without_one(tmp_path):
    "Every way but the captured ones, which say why not; the roofs are counted and measured"
    out = tmp_path/'gpu.jsonl'
    done = on_gpu('--size', 'tiny', '--device', 'cpu', '--out', out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = sound(out, rows_of('gpu'))
    captured = [r for r in found if 'left_out' in r and r['row'] != 'gpu_tests']
    assert all('captured' in r['beside'] and 'CUDA device' in r['left_out'] for r in captured) and len(captured) == 11
    assert any('compiled' in r.get('ours_is', '') and 'median' in r for r in found)
    for r in (r for r in found if r['row'] == 'gpu_roofline' and 'median' in r):
        assert r['flops'] > r['operators'] > 100 and r['bytes'] > 1e6 and r['bound'] in r['needs'] and min(r['needs'].values()) > 0
        assert r['theirs'] == max(r['needs']['arithmetic'], r['needs']['memory']) and r['ours'] > 0


def test_a_run_on_a_gpu_keeps_what_it_has_and_begins_nothing_after_its_time(tmp_path):
    out = tmp_path/'gpu.jsonl'
    done = on_gpu('--size', 'tiny', '--device', 'cpu', '--out', out, '--minutes', '0', '--only', 'gpu_lovasz', 'gpu_memory')
    assert done.returncode and 'the time was up' in done.stderr and len(load(out)) == 1


def test_the_full_size_asks_for_a_gpu():
    import torch
    done = on_gpu('--device', 'cpu')
    assert done.returncode and '--size tiny' in done.stderr
    if not torch.cuda.is_available(): assert 'no CUDA device' in on_gpu().stderr


def test_the_chapter_names_every_row_of_the_gpu():
    chapter, = (root/'nbs').glob('*_speed.ipynb')
    assert set(re.findall(r"'(gpu_\w+)': ", chapter.read_text())) == set(rows_of('gpu'))


def test_a_record_of_a_gpu_waits_for_it_and_names_it(monkeypatch):
    import torch
    from types import SimpleNamespace
    waits = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: SimpleNamespace(name='card', total_memory=80*2**30))
    def make(smoke, device): yield timing.Pair('a', lambda: None, lambda: None)
    monkeypatch.setitem(timing.ROWS, 'odd', (make, 'odd', None, 1))
    r, = timing.records('odd', device='cuda')
    assert r['gpu'] == 'card, 80 GiB' and (r['device'], r['clock'], r['preset'], r['runs']) == ('cuda', 'wall', 'gpu', 15) and len(waits) == 4 + 60


def test_what_fails_on_a_rented_machine_is_left_out_and_the_next_is_measured(monkeypatch):
    def broken(): raise MemoryError('not enough\nof it')
    def make(smoke):
        yield timing.Pair('a', broken, broken, ours_is='x')
        yield timing.Pair('b', lambda: None, lambda: None)
    monkeypatch.setitem(timing.ROWS, 'odd', (make, 'odd', None, 1))
    a, b = timing.records('odd', True, go_on=True)
    assert a['left_out'] == 'MemoryError: of it' and a['beside'] == 'a (x)' and b['median'] > 0
    with pytest.raises(MemoryError): list(timing.records('odd', True))


def test_the_records_of_the_book_are_of_rows_that_there_are():
    "At full size, and each comparison once"
    found = load(bench.book, id=str)
    assert found and {r['row'] for r in found} <= {name for part in parts for name in rows_of(part)}
    assert len({r['id'] for r in found}) == len(found) and {r['preset'] for r in found} == {'cpu'}


def test_a_row_that_is_measured_again_replaces_its_lines(tmp_path):
    file = tmp_path/'bench.jsonl'
    bench.save(file, 'a', [dict(id='a/x', row='a', median=1.)])
    bench.save(file, 'b', [dict(id='b/x', row='b', median=1.)])
    bench.save(file, 'a', [dict(id='a/y', row='a', median=2.)])
    assert [r['id'] for r in load(file)] == ['b/x', 'a/y']


def test_times_are_paired_and_turns_alternate():
    turns = []
    times = timing.paired(lambda: turns.append('ours'), lambda: turns.append('theirs'), runs=4)
    assert len(times) == 4 and turns == ['ours', 'theirs']*2 + ['theirs', 'ours'] + ['ours', 'theirs'] + ['theirs', 'ours']


def test_the_clock_is_the_callers():
    ticks = iter(range(100))
    assert timing.ratio(lambda: next(ticks), lambda: None, 3, clock=lambda: next(ticks)) == (2, 2, 2)


def test_costs_name_what_takes_the_time():
    import torch
    a = torch.randn(400, 400)
    name, share, calls = timing.operators(lambda: [a @ a for _ in range(20)])[0]
    assert name == 'aten::mm' and calls % 20 == 0 and share > 0
    names = [name for name, *_ in timing.functions(lambda: sorted(range(10**5), key=str))]
    assert any('sorted' in name or 'test_bench' in name for name in names)
