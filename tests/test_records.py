"Records under attack: torn lines, full disks, writers side by side."
import errno, json, math, os, time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from resnotes import records
from resnotes.records import append, from_line, load, non_finite, results, to_line, write_whole


# lines

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda s: s not in non_finite),
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
    monkeypatch.setattr(records, 'open', lambda *a, **k: Full(open(*a, **k), room), raising=False)
    with pytest.raises(OSError, match='No space left'): append(path, {'i': 1, 'pad': 'x'*100})
    assert path.read_bytes() == before
    monkeypatch.undo()
    append(path, {'i': 2})
    assert [r['i'] for r in load(path)] == [0, 2]

def test_a_failing_sync_takes_the_line_back(tmp_path, monkeypatch):
    def fail(fd): raise OSError(errno.EIO, 'input/output error')
    path = tmp_path/'x.jsonl'
    append(path, {'i': 0})
    monkeypatch.setattr(records.os, 'fsync', fail)
    with pytest.raises(OSError): append(path, {'i': 1})
    assert load(path) == [{'i': 0}]

# files replaced as a whole

def test_a_file_is_replaced_wholly_or_not_at_all(tmp_path):
    def half(f):
        f.write(b'new')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path = write_whole(tmp_path/'folder'/'x', lambda f: f.write(b'old'))
    with pytest.raises(OSError, match='No space left'): write_whole(path, half)
    assert path.read_bytes() == b'old' and list(path.parent.iterdir()) == [path]

@pytest.mark.parametrize('after', [False, True])
def test_an_interruption_at_the_rename_stays_one(tmp_path, monkeypatch, after):
    def interrupted(*names):
        if after: rename(*names)
        raise KeyboardInterrupt
    path, rename = write_whole(tmp_path/'x', lambda f: f.write(b'old')), os.replace
    monkeypatch.setattr(records.os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt): write_whole(path, lambda f: f.write(b'new'))
    assert path.read_bytes() == (b'new' if after else b'old') and list(tmp_path.iterdir()) == [path]


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



# tables

def test_columns_that_results_adds(tmp_path):
    record = dict(id='a', arm='a', epochs=2, step_loss=[9., 5., 3., 1.], final_train_loss=1., additions=dict(lost_before=.25, layer='x'), model_args=dict(c=.5))
    append(tmp_path/'x.jsonl', record)
    append(tmp_path/'x.jsonl', record | dict(id='b', step_loss=[1., math.inf], additions=dict(lost_before=math.nan)))
    runs = results('x', tmp_path)
    assert runs.final_epoch_loss.tolist() == [2, math.inf] and runs.additions_lost_before[0] == .25

