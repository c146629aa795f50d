"One fact, one place: what tools force to stand twice must agree, and the layout keeps its promises."
import ast, json, os, re, subprocess, sys, tomllib
from configparser import ConfigParser
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
chapters = sorted((root/'nbs').glob('*.ipynb'))
ini = ConfigParser(interpolation=None); ini.read(root/'settings.ini')
settings, project = ini['DEFAULT'], tomllib.loads((root/'pyproject.toml').read_text())

# A module imports only from floors below its own.
floors = {'checks': 0, 'tables': 1, 'records': 1, 'memory': 1, 'init': 2, 'losses': 2, 'metrics': 2, 'stats': 2, 'ledger': 2,
          'blocks': 2.5, 'signal': 3, 'norm': 3, 'samplers': 3, 'moments': 4, 'resnet': 4, 'unet': 4, 'listener': 4, 'branches': 5,
          'networks': 5, 'summands': 5, 'shares': 6, 'starts': 7, 'evidence': 7, 'sensitivity': 7,
          'causes': 7.2, 'propagation': 7.4, 'rate': 7.4, 'report': 7.6, 'ailments': 7.8, 'diagnose': 8,
          'images': 8.5, 'tiles': 8.5, 'data': 9, 'salt': 10, 'learner': 11, 'callbacks': 11, 'speed': 11, 'resume': 12, 'segment': 13,
          'trial': 13, 'lab': 14, 'design': 14, 'experiments': 15, 'plateaus': 16, 'cli': 17}
light = 8  # up to this floor, torch and numpy are all that an import needs
heavy = {'fastai', 'matplotlib', 'pandas', 'sklearn', 'scipy', 'filelock', 'joblib'}


def test_name_version_and_slug_agree():
    import resnotes
    assert settings['version'] == resnotes.__version__
    assert settings['lib_name'] == project['project']['name'] == resnotes.__name__
    slug = f"{settings['user']}/{settings['lib_name']}"
    assert project['project']['urls']['Repository'].endswith('github.com/' + slug)


def test_slug_stands_only_in_pyproject():
    "And where Quarto and Colab must read it: tests/test_pages.py compares these"
    slug = '/'.join(project['project']['urls']['Repository'].split('/')[-2:])
    forced = f'repo-url: https://github.com/{slug}', f'[train] @ git+https://github.com/{slug}'
    def text(f): return f.read_text().replace(forced[0], '').replace(forced[1], '')
    files = [*chapters, root/'_quarto.yml', *(root/'docs').glob('*.py'), *(root/'resnotes').glob('*.py')]
    modidx = root/'resnotes'/'_modidx.py'  # written by nbdev-export from pyproject.toml
    assert [f.name for f in files if f != modidx and f'github.com/{slug}' in text(f)] == []


def required(key):
    "Names of the packages under a key of settings.ini"
    return {re.split(r'[<>=!~;\[]', r)[0].lower() for r in settings[key].split()}


def test_every_requirement_is_pinned():
    names = {re.split(r'[=;]', l)[0].lower().replace('_', '-') for l in (root/'constraints.txt').read_text().splitlines() if '==' in l}
    assert required('requirements') | required('train_requirements') | required('dev_requirements') <= names


@pytest.mark.parametrize('path', sorted((root/'resnotes').glob('*.py')), ids=lambda p: p.stem)
def test_every_import_is_a_requirement(path):
    """Up to diagnosis an import needs what is always there, above it what training needs. What is imported inside of
    a function, or by the book's tools, may be a requirement of developers only"""
    packages = {'PIL': 'pillow', 'sklearn': 'scikit-learn', 'bs4': 'beautifulsoup4'}
    trainers = {'transformers', 'lightning'}     # of other people: who calls for a callback of theirs has them
    always, train, sometimes = required('requirements'), required('train_requirements'), required('dev_requirements')
    core = path.stem in floors and floors[path.stem] <= light and path.stem != 'stats'
    for name, at_import in imports(path.read_text()):
        top = name.split('.')[0]
        if top == 'resnotes' or top in sys.stdlib_module_names: continue
        allowed = always if core else always | train
        if not at_import or path.stem[0] == '_': allowed = always | train | sometimes | trainers
        assert packages.get(top, top) in allowed, f'{path.stem} imports {name}'


def test_the_core_needs_little():
    assert required('requirements') == {'torch', 'numpy', 'fastcore'}
    assert not required('requirements') & required('train_requirements')
    assert (root/'resnotes'/'py.typed').exists()


def test_the_command_says_in_one_line_what_the_core_lacks():
    assert project['project']['scripts'] == {'resnotes': 'resnotes.__main__:main'}
    program = "import sys; sys.modules['pandas'] = None; from resnotes.__main__ import main; sys.exit(main())"
    run = subprocess.run([sys.executable, '-c', program, '--version'], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr == "resnotes.cli needs pandas, which is not installed: pip install 'resnotes[train]'\n"


def test_quarto_yml_is_one_file():
    link = root/'nbs'/'_quarto.yml'
    assert link.is_symlink() and link.resolve() == root/'_quarto.yml'


def imports(source):
    "Top-level imported module names, relative and lazy ones included, with whether they stand at import time"
    tree = ast.parse(source)
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom): names = [('resnotes.' if node.level else '') + node.module] if node.module else [f'resnotes.{a.name}' for a in node.names]
        else: continue
        for name in names: yield name, id(node) not in lazy


@pytest.mark.parametrize('path', [p for p in sorted((root/'resnotes').glob('*.py')) if p.stem[0] != '_'], ids=lambda p: p.stem)
def test_modules_import_downward(path):
    floor = floors[path.stem]
    for name, at_import in imports(path.read_text()):
        top, *rest = name.split('.')
        assert top != 'torchvision'
        if top == 'resnotes' and rest and rest[0] != path.stem: assert floors[rest[0]] < floor, f'{path.stem} imports {name}'
        if at_import and floor <= light and path.stem != 'stats': assert top not in heavy, f'{path.stem} imports {name} at import time'


watched = ['numpy', 'torch', 'fastcore', 'fastai', 'fastai.distributed', 'torchvision', *sorted(heavy - {'fastai'})]
program = '''
import importlib, json, sys, time
watched, order = json.loads(sys.argv[1])
sys.modules['accelerate'] = None
brought, seconds = {}, {}
for name in order:
    before, began = set(sys.modules), time.process_time()
    importlib.import_module(name)
    seconds[name] = time.process_time() - began
    brought[name] = [m for m in watched if m in sys.modules and m not in before]
    if name == 'resnotes.diagnose':   # what following and filling a model imports counts, too
        import torch
        from resnotes.diagnose import initialize, residual_branches
        residual_branches(torch.nn.Linear(3, 3), torch.randn(2, 3))
        initialize(torch.nn.Linear(3, 3), rule='he_normal')
        brought['following'] = [m for m in ('torch._dynamo', *watched) if m in sys.modules and m not in before]
print(json.dumps([brought, seconds]))
'''


def test_imports_are_light():
    "One process imports every module, from the lowest floor up; accelerate is missing there"
    rest = [f'resnotes.{name}' for name in sorted(floors, key=lambda name: (floors[name], name)) if name != 'stats']
    rest = [name for name in rest if name not in ('resnotes.tables', 'resnotes.init')]
    order = ['resnotes.tables', 'torch', 'resnotes.init', *rest, 'resnotes.stats']
    run = subprocess.run([sys.executable, '-c', program, json.dumps([watched, order])], capture_output=True, text=True,
                         env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert run.returncode == 0, run.stderr
    brought, seconds = json.loads(run.stdout)
    assert brought['resnotes.tables'] == []
    light_ones = [name for name in order if name not in ('torch', 'resnotes.stats') and floors[name.split('.')[1]] <= light]
    for name in [*light_ones, 'following']: assert set(brought[name]) <= {'fastcore'}, f'{name} brings {brought[name]}'
    for name in order: assert not {'torchvision', 'fastai.distributed'} & set(brought[name]), f'{name} brings {brought[name]}'
    assert seconds['resnotes.tables'] + seconds['resnotes.init'] < .10*seconds['torch']


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_no_chapter_imports_torchvision(path):
    code = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code')
    assert not re.search(r'^\s*(import|from)\s+torchvision|fastai\.vision\.(all|augment|learner)\b', code, re.M)


sys.path.insert(0, str(root/'docs'))


def test_readme_is_the_title_page():
    from readme import readme
    assert (root/'README.md').read_text(encoding='utf-8') == readme(), 'README.md is old: run docs/readme.py'


def test_readme_shows_a_picture_that_a_chapter_drew():
    from readme import find_picture, pictures
    assert pictures()
    for alt, path in pictures(): assert path.read_bytes() == find_picture(alt), f'{path.name} is old: run docs/readme.py'


def test_the_title_page_leads_to_every_chapter():
    index = '\n'.join(''.join(c['source']) for c in json.loads((root/'nbs'/'index.ipynb').read_text())['cells'])
    table = index[index.index('## The chapters'):]
    assert re.findall(r'\]\((\w+\.ipynb)\)', table) == [p.name for p in chapters if p.stem != 'index']
    modules = sorted(p.stem for p in (root/'resnotes').glob('*.py') if p.stem[0] != '_')
    assert sorted(re.findall(r'`(\w+)`', table)) == modules
