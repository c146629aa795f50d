import os, shutil, subprocess, sys, sysconfig, venv
from pathlib import Path

# As `make test` has it: threads that wait for each other make small tensors ten times slower.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest, torch
from filelock import FileLock

from browser import axe, chromium, tab, url   # fixtures, one of each for all files

root = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def once(tmp_path_factory):
    "`once(name, make)` is a path that the first process which needs it makes, by `make(path)`, however many run the tests"
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: shared = shared.parent
    def once(name, make):
        path, done = shared/name, shared/f'{name}.done'
        with FileLock(shared/f'{name}.lock'):
            if not done.exists():
                make(path)
                done.touch()
        return path
    return once

@pytest.fixture(scope='session')
def site(once):
    "The folder of the site, built by the command a reader runs"
    def build(out):
        built = subprocess.run([sys.executable, root/'docs'/'build.py', out], cwd=out.parent, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    return once('site', build)

def installed(home):
    "Build the source archive, the wheel from it alone, and an environment that holds the wheel and sees the packages of this one"
    tree = home/'tree'
    shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns('.*', '_proc', '_site', '_docs', 'build', '*.egg-info'))
    def run(*args):
        done = subprocess.run([sys.executable, '-m', *args], cwd=home, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    run('build', '--no-isolation', '--outdir', home/'dist', tree)
    shutil.rmtree(tree)
    venv.create(home/'env', with_pip=False)
    python = home/'env'/'bin'/'python'
    run('pip', '--python', python, 'install', '--quiet', '--no-deps', next((home/'dist').glob('*.whl')))
    # a folder named so adds its packages, but no checkout that is installed in it as editable
    packages = next((home/'env'/'lib').glob('*/site-packages'))
    packages.joinpath('packages.pth').write_text(sysconfig.get_path('purelib') + '\n')

@pytest.fixture(scope='session')
def reader(once):
    "The folder of programs of an environment that holds the wheel, and nothing of the repository"
    return once('reader', installed)/'env'/'bin'

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
