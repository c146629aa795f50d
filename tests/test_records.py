"Records under attack: torn lines, full disks, writers side by side."
import errno, json, math, os, time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from resnotes import records
from resnotes.records import append, find_record, from_line, lines_by_id, load, non_finite, results, to_line, write_whole


# lines

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda s: s not in non_finite),
                     lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20)

@given(st.dictionaries(st.text(), plain, max_size=5))
def test_lines_are_legal_and_lose_nothing(record):
    line = to_line(record)
    assert line.count(b'\n') == 1 and line.endswith(b'\n')
    json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
    assert repr(from_line(line)) == repr(record)

@pytest.mark.parametrize('x', [math.nan, math.inf, -math.inf])
def test_each_number_that_json_lacks_comes_back_alone(x): assert repr(from_line(to_line(dict(a=x, b=[x])))) == repr(dict(a=x, b=[x]))

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

@pytest.mark.parametrize('pad', [0, 70_000, 200_000])   # longer than the first look from the end, and the second
@pytest.mark.parametrize('last, after', [(b'', b''), (b'{"i": 1}', b'{"i": 1}\n'), (b'{"i": ', b'')])
def test_healing_gives_the_length_of_what_is_whole(tmp_path, pad, last, after):
    path, whole = tmp_path/'x.jsonl', b'' if not pad else to_line(dict(pad=pad*'x'))
    path.write_bytes(whole + last)
    with open(path, 'ab+', buffering=0) as f: assert records._heal(f) == len(whole + after)
    assert path.read_bytes() == whole + after

def test_damage_before_the_end_is_named(tmp_path):
    path = tmp_path/'x.jsonl'
    path.write_bytes(b'{"i": 0}\n\n  \n{"i": 1}\n{"i": \n{"i": 2}\n')
    with pytest.raises(ValueError, match='x.jsonl, line 5 is damaged'): load(path)
    path.write_bytes(b'{"i": 0}\n\n  \n{"i": 1}\n')
    assert load(path) == [{'i': 0}, {'i': 1}], 'blank lines are passed over'
    assert load(tmp_path/'none.jsonl') == []

@pytest.mark.parametrize('line, said', [
    (b'7', 'line 2: a record must be a dictionary, got int'), (b'null', 'got NoneType'), (b'[1, 2]', 'got list'), (b'"text"', 'got str'),
    (b'['*100_000, r'line 2 is damaged \(brackets are nested too deeply\)'), (b'\xff\xfe{', 'line 2 is damaged'), (b'{"id": "a"', 'line 2 is damaged'),
    (b'{"arm": "a"}', 'line 2: the field id is missing'), (b'{"id": 3}', 'line 2: id must be a str, got 3')])
def test_lines_of_strangers_are_refused_by_file_line_and_field(tmp_path, line, said):
    path = tmp_path/'x.jsonl'
    path.write_bytes(b'{"id": "first"}\n' + line + b'\n{"id": "last"}\n')
    for read in (lambda: load(path, id=str), lambda: results('x', tmp_path, id=str)):
        with pytest.raises(ValueError, match=said) as e: read()
        assert str(path) in str(e.value)
    if b'"id": "a"' not in line:
        with pytest.raises(ValueError, match=said): lines_by_id(path)

@pytest.mark.parametrize('last', [b'7', b'[1]', b'{"id": "z"}'])
def test_a_last_line_that_is_whole_is_never_dropped(tmp_path, last):
    path = tmp_path/'x.jsonl'
    path.write_bytes(b'{"id": "a"}\n' + last)
    append(path, {'id': 'b'})
    assert path.read_bytes() == b'{"id": "a"}\n' + last + b'\n{"id": "b"}\n'

def test_two_records_of_one_id_count_once_and_the_later_counts_everywhere(tmp_path):
    path = tmp_path/'x.jsonl'
    for i, (name, arm) in enumerate((('a', 'p'), ('b', 'q'), ('a', 'p'))): append(path, dict(id=name, arm=arm, n=i))
    with open(path, 'ab') as f: f.write(b'{"n": 3, "id": "b"}\n')   # a stranger's order of fields
    assert list(lines_by_id(path)) == ['a', 'b'] and find_record(path, 'a')['n'] == 2 and find_record(path, 'b')['n'] == 3
    assert results('x', tmp_path)[['id', 'n']].values.tolist() == [['a', 2], ['b', 3]]

def test_a_pipe_is_no_results_file(tmp_path):
    os.mkfifo(tmp_path/'x.jsonl')
    for use in (lambda: load(tmp_path/'x.jsonl'), lambda: append(tmp_path/'x.jsonl', {}), lambda: lines_by_id(tmp_path/'x.jsonl')):
        with pytest.raises(ValueError, match='x.jsonl must be a file'): use()

def test_no_name_leads_out_of_the_folder(tmp_path):
    append(tmp_path/'x.jsonl', {'id': 'a'})
    append(tmp_path/'in'/'y.jsonl', {'id': 'a'})
    for name in ('../x', str(tmp_path/'x')):
        with pytest.raises(ValueError, match="experiment must be one of 'y'"): results(name, tmp_path/'in')

@pytest.mark.parametrize('tail', [b'', b'{"pad": "' + b'y'*300_000])   # a torn line longer than one look from the end
def test_an_append_reads_the_end_of_the_file_and_no_more(tmp_path, monkeypatch, tail):
    path, read = tmp_path/'x.jsonl', []
    for i in range(50): append(path, {'i': i, 'pad': 'x'*100_000})
    with open(path, 'ab') as f: f.write(tail)
    class Counted(Full):
        def read(self, n=-1):
            read.append(len(data := self.file.read(n)))
            return data
    monkeypatch.setattr(records, 'open', lambda *a, **k: Counted(open(*a, **k), 10**9), raising=False)
    append(path, {'i': 50})
    assert 0 < sum(read) < 2_000_000 < path.stat().st_size
    assert [r['i'] for r in load(path)] == list(range(51))

def test_odd_values_do_not_end_a_table(tmp_path):
    for i, odd in enumerate((dict(step_loss=5), dict(step_loss=[1.]), dict(step_loss=[1., 2.], epochs=0), dict(step_loss=[1., 2.], epochs='two'))):
        append(tmp_path/'x.jsonl', dict(id=str(i)) | odd)
    assert len(results('x', tmp_path)) == 4

def test_folders_on_the_way_are_made(tmp_path):
    append(tmp_path/'a'/'b'/'x.jsonl', {'i': 0})
    assert load(tmp_path/'a'/'b'/'x.jsonl') == [{'i': 0}] and write_whole(tmp_path/'c'/'d'/'x', lambda f: f.write(b'new')).read_bytes() == b'new'
    assert find_record(tmp_path/'none.jsonl', 'a') is None

def test_the_folder_is_forced_to_the_disk_with_the_first_record_alone(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(records, 'sync_folder', forced.append)
    for i in range(3): append(tmp_path/'x.jsonl', {'i': i})
    assert forced == [tmp_path]

def test_a_folder_is_forced_to_the_disk_where_it_can_be_opened(tmp_path, monkeypatch):
    forced, there = [], os.stat(tmp_path)
    monkeypatch.setattr(os, 'fsync', lambda fd: forced.append(os.path.samestat(os.fstat(fd), there)))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, 'name', 'nt')
        records.sync_folder(str(tmp_path))
    assert forced == []
    records.sync_folder(str(tmp_path))
    assert forced == [True]

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
    assert runs.step_loss[0] == [9., 5., 3., 1.] and runs.additions[0] == dict(lost_before=.25, layer='x') and runs.model_args[1] == dict(c=.5)
    short = results('x', tmp_path, whole=False)
    assert list(short) == [c for c in runs if c not in ('step_loss', 'additions', 'model_args')] and short.equals(runs[list(short)])

words = st.sampled_from(['a', 'step_loss', 'epochs', 'x_args', '[1]', 'a]b', ', "', '": [', '"step_loss": [2]', '\\', '{', '}, ', 'NaN '])
odd = st.recursive(st.none() | st.booleans() | st.integers(-1, 9) | st.floats() | words,
                   lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8)
losses = st.lists(st.floats() | st.integers(0, 9), max_size=9)

@example({'step_loss': [2.**53, 1, 1], 'epochs': 1})   # whole numbers are added in another way than fractions
@example({'x': {'step_loss': [1., 2.]}, 'step_loss': [3., 5.], 'epochs': 1})   # the losses of something else stand before
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(words, odd) | st.tuples(st.just('step_loss'), losses) | st.tuples(st.just('epochs'), st.integers(-1, 12)), max_size=7).map(dict))
def test_what_is_read_in_short_is_what_is_read_without_lists_and_dictionaries(record):
    line = to_line(record)
    try: wanted = {k: v for k, v in records._with_notes(line).items() if not isinstance(v, (dict, list))}
    except TypeError:   # losses that are no numbers
        with pytest.raises(TypeError): records._in_short(line)
    else: assert repr(records._in_short(line)) == repr(wanted)

@pytest.mark.parametrize('line', [b'{"a": [1, "b": 2}', b'{"a": [1], [2], "b": 2}', b'{"a": ["], "b": 3, "c": ["]}', b'[1, 2]', b'{"step_loss": [1, 2], "epochs": 1'])
def test_what_is_cut_out_of_a_damaged_line_does_not_mend_it(line):
    with pytest.raises((TypeError, ValueError)): records._in_short(line)

@pytest.mark.parametrize('epochs', [1, 2])
def test_lists_are_not_read_for_a_table_in_short(monkeypatch, epochs):
    record, read, parse = dict(id='a', epochs=epochs, accuracy=[.125]*9, step_loss=[.5]*8 + [.25, .75], step_every=1), [], json.loads
    monkeypatch.setattr(records.json, 'loads', lambda line: read.append(line) or parse(line))
    assert records._in_short(to_line(record)) == dict(id='a', epochs=epochs, step_every=1, final_epoch_loss=.5)
    assert len(read) == 1 and b'[' not in read[0]

def test_an_experiment_is_recorded_when_one_line_of_it_was_written_wholly(tmp_path):
    (tmp_path/'torn.jsonl').write_bytes(b'\n\n{"id": ')
    (tmp_path/'none.jsonl').touch()
    (tmp_path/'one.jsonl').write_bytes(b'\n{"id": "a"}')
    assert records.recorded_experiments(tmp_path) == ['one']
    os.mkfifo(tmp_path/'pipe.jsonl')
    with pytest.raises(ValueError, match='pipe.jsonl must be a file'): records.recorded_experiments(tmp_path)


@pytest.mark.parametrize('record', [dict(arm='NaN'), dict(a=['Infinity']), dict(a=dict(b='-Infinity'))])
def test_text_that_would_come_back_as_a_number_is_refused(record):
    with pytest.raises(ValueError, match='record must hold no text that stands for a number'): to_line(record)

def test_files_are_open_to_whom_the_umask_lets_read(tmp_path):
    before = os.umask(0o027)
    try: records.write_whole(tmp_path/'a', lambda f: f.write(b'x'))
    finally: os.umask(before)
    assert (tmp_path/'a').stat().st_mode & 0o777 == 0o640 and [p.name for p in tmp_path.iterdir()] == ['a']
