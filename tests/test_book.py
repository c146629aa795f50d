"Every chapter runs alone from an empty folder, its stored outputs are current and small, and the modules are its export."
import json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
chapters = sorted((root/'nbs').glob('*.ipynb'))
bin = Path(sys.executable).parent
env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': f"{bin}:{os.environ['PATH']}"}


def cells(path): return json.loads(path.read_text())['cells']
def source(cell): return ''.join(cell['source'])
def flags(cell): return {l[2:].split()[0].rstrip(':') for l in source(cell).splitlines() if l.startswith('#|') and l[2:].split()}


def shown(cell):
    "What a reader sees of a cell's outputs: their kinds, and every verdict in full"
    out = []
    for o in cell['outputs']:
        kinds = sorted(o.get('data', {o.get('name', o['output_type']): ''}))
        text = ''.join(o.get('data', {}).get('text/markdown', ''))
        out.append((kinds, text if '**' in text else ''))
    return out


# does what nbdev-test does, for each folder and chapter on its input in a child; what takes long to import is there
# already, but nothing of fastai and of this library
runner = '''
import os, sys, traceback
import matplotlib.pyplot, numpy, pandas, scipy.stats, sklearn.model_selection, torch
from nbdev.test import nbdev_test
for line in sys.stdin:
    folder, chapter = line.rstrip().split(os.pathsep)
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        log = os.open('log.txt', os.O_WRONLY | os.O_CREAT)
        for fd in (1, 2): os.dup2(log, fd)
        try: code = nbdev_test(path=chapter, save=True) or 0
        except SystemExit as e: code = e.code
        except BaseException: code = traceback.print_exc() or 1
        for f in (sys.stdout, sys.stderr): f.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


@pytest.fixture(scope='module')
def run():
    "Runs a chapter in its folder and stores the outputs; the exit code"
    with subprocess.Popen([sys.executable, '-c', runner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        def run(path):
            print(path.parent, path.name, sep=os.pathsep, file=process.stdin, flush=True)
            return int(process.stdout.readline())
        yield run
        process.stdin.close()


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_chapter_runs_alone_and_its_outputs_are_current(path, tmp_path, run):
    shutil.copy(path, tmp_path)
    (tmp_path/'pyproject.toml').write_text('[project]\nname = "alone"\n[tool.nbdev]\nnbs_path = "."\ntst_flags = "slow cuda"\n')
    assert run(tmp_path/path.name) == 0, (tmp_path/'log.txt').read_text()
    for old, new in zip(cells(path), cells(tmp_path/path.name), strict=True):
        if old['cell_type'] == 'code' and not flags(old) & {'slow', 'cuda'}: assert shown(old) == shown(new), source(old)


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_stored_outputs_are_small_and_free_of_noise(path):
    assert path.stat().st_size < 1_500_000
    for cell in cells(path):
        if cell['cell_type'] != 'code': continue
        for o in cell['outputs']:
            text = ''.join(o.get('text', '')) + ''.join(''.join(v) for k, v in o.get('data', {}).items() if k.startswith('text'))
            assert o['output_type'] != 'error' and o.get('name') != 'stderr', source(cell)
            assert ' at 0x' not in text and len(text) < 20_000, source(cell)
            if 'image/png' in o.get('data', {}):
                assert len(o['data']['image/png'])*3/4 < 150_000, source(cell)
                assert 'fig-alt' in flags(cell), source(cell)


@pytest.mark.parametrize('path', [c for c in chapters if c.stem[:1].isdigit()], ids=lambda p: p.stem)
def test_chapter_form(path):
    first, *rest = cells(path)
    assert source(first).startswith('# ') and '\n> ' in source(first)
    for cell in rest:
        if cell['cell_type'] == 'markdown' and source(cell).startswith('##'): assert '\n' not in source(cell).strip(), 'a heading has its own cell'
    text = '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    for foreign in (':::', '@fig-', '{#', '{ref}', '{cite}', '{eq}'): assert foreign not in text


sys.path.insert(0, str(root/'docs'))
import heads

numbered = heads.chapters()   # of the book's parts; appendices serve a purpose, and need no box
of_each = pytest.mark.parametrize('path', numbered, ids=lambda p: p.stem)


@of_each
def test_a_chapter_begins_with_a_box(path):
    "Question, answer with a link to what shows it, three names, what to know before, and the time: a screen in all"
    text = source(cells(path)[1])
    question, answer, names, known, time = (p.removeprefix('> ') for p in text.split('\n>\n'))
    assert re.fullmatch(r'\*\*.+\?\*\*', question) and '](#' in answer
    assert re.fullmatch(r'\*Take away:\* ((`[^`]+`|\[[^]]+\]\([^)]+\))(, |\.)){3}', names)
    assert re.fullmatch(r'\*Know before:\* .+\.', known)
    assert '\n' not in text.replace('\n>\n', '') and len(text.split()) <= 150


@of_each
def test_the_time_in_the_box_is_the_measured_one(path):
    "Reading follows from the words, running from docs/times.json; a few words more need no new number"
    nb, told = heads.read_nb(path), source(cells(path)[1]).split('> ')[-1]
    minutes = int(re.search(r'about (\d+) minutes', told)[1])
    assert abs(minutes - heads.read_minutes(nb)) <= 5 and told.partition(' and ')[2] == heads.time_line(path, nb).partition(' and ')[2], \
        'run docs/heads.py'


def below(path, heading):
    "The text under a heading of the second level"
    texts = [source(c) for c in cells(path)]
    rest = texts[texts.index(f'## {heading}') + 1:]
    return '\n\n'.join(rest[:next((i for i, text in enumerate(rest) if text.startswith('## ')), None)])


@of_each
def test_a_chapter_ends_in_a_summary_and_questions(path):
    headings = [source(c) for c in cells(path) if source(c).startswith('## ')]
    assert headings[-3:] == ['## Summary', '## Recall', '## Exercises']
    assert [line[:3] for line in below(path, 'Summary').splitlines()] == ['1. ', '2. ', '3. ']
    item = r'\*\*(\d)\.\*\* [^\n]+[?.]\n\n<details><summary>Answer</summary>\n\n[^\n]+\n\n</details>'
    assert re.findall(item, below(path, 'Recall')) == list('12345') and re.sub(item, '', below(path, 'Recall')).strip() == ''
    assert '<details><summary>Answer</summary>' in below(path, 'Exercises')


def test_the_short_way_joins_the_boxes():
    assert [source(c) for c in cells(heads.short)] == list(heads.short_way()), 'run docs/heads.py'
    assert sum(len(text.split()) for text in heads.short_way()) < 60*150, 'an hour'


@pytest.fixture(scope='module')
def exported(once):
    "A copy of the working tree after nbdev-export and nbdev-clean"
    def export(copy):
        shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns('.*', '_proc', '_site', '_docs', 'results', 'build'))
        for command in ('nbdev-export', 'nbdev-clean'):
            subprocess.run([bin/command], cwd=copy, check=True, capture_output=True, env={**env, 'PYTHONPATH': str(copy)})
    return once('exported', export)


def test_export_is_in_sync(exported):
    for path in sorted((root/'resnotes').glob('*.py')) + [root/'pyproject.toml']:
        assert path.read_text() == (exported/path.relative_to(root)).read_text(), f'{path.name} differs: run nbdev-export'


def test_notebooks_are_clean(exported):
    for path in chapters: assert path.read_text() == (exported/'nbs'/path.name).read_text(), f'{path.name} differs: run nbdev-clean'
