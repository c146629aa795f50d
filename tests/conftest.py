import os, subprocess, sys
from pathlib import Path

import pytest
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
