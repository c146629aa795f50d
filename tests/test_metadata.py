"One fact, one place: what tools force to stand twice must agree, and the layout keeps its promises."
import ast, json, re, sys, tomllib
from configparser import ConfigParser
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
chapters = sorted((root/'nbs').glob('*.ipynb'))
ini = ConfigParser(interpolation=None); ini.read(root/'settings.ini')
settings, project = ini['DEFAULT'], tomllib.loads((root/'pyproject.toml').read_text())

# A module imports only from floors below its own.
floors = {'checks': -1, 'init': 0, 'losses': 0, 'metrics': 0, 'signal': 1, 'norm': 1, 'blocks': 1, 'samplers': 1,
          'resnet': 2, 'unet': 2, 'summands': 3, 'diagnose': 4, 'data': 5, 'train': 6, 'speed': 6, 'ledger': 6,
          'experiments': 7, 'lab': 8, 'cli': 9}
light = 4  # up to this floor, torch and numpy are all that an import needs
heavy = {'fastai', 'matplotlib', 'pandas', 'sklearn', 'scipy'}


def test_name_version_and_slug_agree():
    import resnotes
    assert settings['version'] == resnotes.__version__
    assert settings['lib_name'] == project['project']['name'] == resnotes.__name__
    slug = f"{settings['user']}/{settings['lib_name']}"
    assert project['project']['urls']['Repository'].endswith('github.com/' + slug)


def test_slug_stands_only_in_pyproject():
    slug = '/'.join(project['project']['urls']['Repository'].split('/')[-2:])
    files = [*chapters, root/'_quarto.yml', *(root/'docs').glob('*.py'), *(root/'resnotes').glob('*.py')]
    modidx = root/'resnotes'/'_modidx.py'  # written by nbdev-export from pyproject.toml
    assert [f.name for f in files if f != modidx and f'github.com/{slug}' in f.read_text()] == []


def required(key):
    "Names of the packages under a key of settings.ini"
    return {re.split(r'[<>=!~;\[]', r)[0].lower() for r in settings[key].split()}


def test_every_requirement_is_pinned():
    names = {re.split(r'[=;]', l)[0].lower().replace('_', '-') for l in (root/'constraints.txt').read_text().splitlines() if '==' in l}
    assert required('requirements') | required('dev_requirements') <= names


@pytest.mark.parametrize('path', sorted((root/'resnotes').glob('*.py')), ids=lambda p: p.stem)
def test_every_import_is_a_requirement(path):
    "What is imported inside of a function, or by the book's tools, may be a requirement of developers only"
    packages = {'PIL': 'pillow', 'sklearn': 'scikit-learn'}
    always, sometimes = required('requirements'), required('dev_requirements')
    for name, at_import in imports(path.read_text()):
        top = name.split('.')[0]
        if top == 'resnotes' or top in sys.stdlib_module_names: continue
        allowed = always if at_import and path.stem[0] != '_' else always | sometimes
        assert packages.get(top, top) in allowed, f'{path.stem} imports {name}'


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
        if top == 'resnotes' and rest: assert floors[rest[0]] < floor, f'{path.stem} imports {name}'
        if at_import and floor <= light: assert top not in heavy, f'{path.stem} imports {name} at import time'


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_no_chapter_imports_torchvision(path):
    code = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code')
    assert not re.search(r'^\s*(import|from)\s+torchvision|fastai\.vision\.(all|augment|learner)\b', code, re.M)


def commands(text):
    "Lines of the fenced shell and Python blocks"
    return [l for block in re.findall(r'```(?:sh|python)\n(.*?)```', text, re.S) for l in block.splitlines()]


def figures(text):
    "Alternative text and file name of each picture"
    return [(alt, Path(src).name) for alt, src in re.findall(r'!\[([^\]]*)\]\(([^)]+)\)', text)]


def test_readme_and_index_say_the_same():
    index = '\n\n'.join(''.join(c['source']) for c in json.loads((root/'nbs'/'index.ipynb').read_text())['cells'])
    readme = (root/'README.md').read_text()
    assert commands(readme) == commands(index) != []
    assert figures(readme) == figures(index) != []


def test_readme_shows_a_picture_that_a_chapter_drew():
    sys.path.insert(0, str(root/'docs'))
    from picture import find_picture, pictures
    for alt, path in pictures(): assert path.read_bytes() == find_picture(alt), f'{path.name} is old: run docs/picture.py'
