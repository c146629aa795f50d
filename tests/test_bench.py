"The benchmark: every row runs at a tiny size, and the records of the book hold every row. Nothing here is timed."
import math, subprocess, sys
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
    lines = (benchmarks/f'bench_{part}.py').read_text().splitlines()
    return [b.split('(')[0][4:] for a, b in zip(lines, lines[1:]) if a.startswith('@row(')]


def test_the_parts_are_those_of_the_driver(): assert parts == bench.modules


@pytest.mark.parametrize('part', parts)
def test_every_row_runs(part, tmp_path):
    names, out = rows_of(part), tmp_path/'smoke.jsonl'
    assert names
    done = subprocess.run([sys.executable, benchmarks/'bench.py', '--smoke', '--out', out, '--only', *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = load(out, id=str, row=str, what=str, beside=str)
    assert {r['row'] for r in found} == set(names) and len({r['id'] for r in found}) == len(found)
    for r in found:
        assert r['preset'] == 'smoke' and r['machine'] and r['torch'] and r['finished']
        if 'left_out' in r:
            assert r['left_out'] and 'median' not in r
            continue
        assert 0 < r['low'] <= r['median'] <= r['high'] < math.inf and r['runs'] >= 1
        if 'costs' in r: assert 0 < len(r['costs']) <= 10 and 0 < sum(share for _, share, _ in r['costs']) <= 1 + 1e-6


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
