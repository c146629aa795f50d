import os, shutil, subprocess, sys
from pathlib import Path

import pytest, torch
from filelock import FileLock

root = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The folder of the site, built once by the command a reader runs, however many processes run the tests"
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: shared = shared.parent
    out,done = shared/'site',shared/'site.done'
    with FileLock(shared/'site.lock'):
        if not done.exists():
            build = subprocess.run([sys.executable, root/'docs'/'build.py', out], cwd=shared, capture_output=True, text=True)
            assert build.returncode == 0, build.stdout + build.stderr
            done.touch()
    return out

@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the repository"
    home = tmp_path_factory.mktemp('wheel')
    tree = home/'tree'
    shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns('.*', '_proc', '_site', '_docs', 'build', '*.egg-info'))
    subprocess.run([sys.executable, '-m', 'build', '--wheel', '--outdir', home, tree], check=True, capture_output=True)
    shutil.rmtree(tree)
    return next(home.glob('*.whl'))

@pytest.fixture(scope='session')
def alone():
    "Environment variables for an interpreter that must find nothing but what is installed in it"
    return {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')} | {'OMP_NUM_THREADS': '1'}

@pytest.fixture
def one_thread():
    "As in the processes that the tests start, whatever the machine has"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
