"A reader's machine: the wheel in a fresh environment, one chapter in an empty folder."
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def reader(tmp_path_factory, wheel, alone):
    "Python of a fresh environment that holds the wheel and what runs a notebook, and nothing of the repository"
    home = tmp_path_factory.mktemp('reader')
    subprocess.run([sys.executable, '-m', 'venv', home/'env'], check=True)
    python = home/'env'/'bin'/'python'
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--constraint', root/'constraints.txt', wheel, 'nbclient', 'ipykernel'],
                   check=True, capture_output=True, env=alone)
    yield python
    shutil.rmtree(home/'env')


@pytest.fixture
def run(reader, alone, tmp_path):
    "Runs the reader's Python in an empty folder and returns what it prints"
    def run(*args):
        r = subprocess.run([reader, *args], cwd=tmp_path, capture_output=True, text=True, env=alone)
        assert r.returncode == 0, r.stdout + r.stderr
        return r.stdout
    return run


def test_promised_import(run):
    out = run('-c', 'from resnotes.init import depth_scaled_normal; import torch; '
              'print(depth_scaled_normal(torch.empty(16,16,8,8), depth=100).var().item())')
    assert float(out) == pytest.approx(1/(8*8*16*100), rel=.05)


def test_wheel_holds_what_it_needs(run):
    out = run('-c', "import matplotlib.pyplot as plt, resnotes; plt.style.use('resnotes.book'); print(resnotes.__file__)")
    assert 'site-packages' in out


@pytest.mark.parametrize('chapter', ['01_init', '12_train'])
def test_chapter_runs_from_an_empty_folder(run, tmp_path, chapter):
    path = tmp_path/f'{chapter}.ipynb'
    nb = json.loads((root/'nbs'/path.name).read_text())
    nb['cells'] = [c for c in nb['cells'] if not ''.join(c['source']).startswith(('#| slow', '#| cuda'))]
    path.write_text(json.dumps(nb))
    run('-c', f"import nbformat, nbclient; nbclient.execute(nbformat.read('{path.name}', 4), cwd='.')")
