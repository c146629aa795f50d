"A reader's machine: the wheel in a fresh environment, one chapter in an empty folder."
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
    "Python of a fresh environment that holds the wheel and what runs a notebook, and nothing of the repository"
    home = tmp_path_factory.mktemp('reader')
    tree = home/'tree'
    shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns('.*', '_proc', '_site', '_docs', 'build', '*.egg-info'))
    subprocess.run([sys.executable, '-m', 'build', '--wheel', '--outdir', home, tree], check=True, capture_output=True)
    wheel, = home.glob('*.whl')
    subprocess.run([sys.executable, '-m', 'venv', home/'env'], check=True)
    python = home/'env'/'bin'/'python'
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--constraint', root/'constraints.txt', wheel, 'nbclient', 'ipykernel'],
                   check=True, capture_output=True)
    yield python
    shutil.rmtree(home/'env')


def run(python, cwd, *args):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    r = subprocess.run([python, *args], cwd=cwd, capture_output=True, text=True, env={**env, 'OMP_NUM_THREADS': '1'})
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout


def test_promised_import(reader, tmp_path):
    out = run(reader, tmp_path, '-c', 'from resnotes.init import depth_scaled_normal; import torch; '
              'print(depth_scaled_normal(torch.empty(16,16,8,8), depth=100).var().item())')
    assert float(out) == pytest.approx(1/(8*8*16*100), rel=.05)


def test_wheel_holds_what_it_needs(reader, tmp_path):
    out = run(reader, tmp_path, '-c', "import matplotlib.pyplot as plt, resnotes; plt.style.use('resnotes.book'); print(resnotes.__file__)")
    assert 'site-packages' in out


@pytest.mark.parametrize('chapter', ['01_init', '12_train'])
def test_chapter_runs_from_an_empty_folder(reader, tmp_path, chapter):
    path = tmp_path/f'{chapter}.ipynb'
    nb = json.loads((root/'nbs'/path.name).read_text())
    nb['cells'] = [c for c in nb['cells'] if not ''.join(c['source']).startswith(('#| slow', '#| cuda'))]
    path.write_text(json.dumps(nb))
    run(reader, tmp_path, '-c', f"import nbformat, nbclient; nbclient.execute(nbformat.read('{path.name}', 4), cwd='.')")
