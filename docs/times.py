"""Measures how long every chapter runs, and writes the seconds to docs/times.json; `python docs/times.py 01_init` measures one anew.

A chapter runs alone in an empty folder, without the cells flagged `slow` or `cuda`. Counted are seconds of the processor, with the
imports: on an idle machine with two cores they are about those on the clock, and on a busy one they stay what they are."""
import json, os, shutil, subprocess, sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parent.parent
kept = Path(__file__).with_suffix('.json')
alone = '[project]\nname = "alone"\n[tool.nbdev]\nnbs_path = "."\ntst_flags = "slow cuda"\n'

def load(): return json.loads(kept.read_text(encoding='utf-8')) if kept.exists() else {}

def spent():
    "Seconds of the processor that finished children have taken"
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def seconds(path):
    "Run one chapter as `nbdev-test` does"
    with TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        (Path(folder)/'pyproject.toml').write_text(alone)
        began = spent()
        command = [sys.executable, '-c', 'import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1])', path.name]
        subprocess.run(command, cwd=folder, check=True, env={'OMP_NUM_THREADS': '1'} | os.environ)
        return spent() - began

def main():
    for path in sorted((root/'nbs').glob('[0-9]*.ipynb')):
        if sys.argv[1:] and path.stem not in sys.argv[1:]: continue
        name = path.stem.split('_', 1)[1]   # numbers change, names stay
        times = load() | {name: round(seconds(path))}
        kept.write_text(json.dumps(dict(sorted(times.items())), indent=1) + '\n', encoding='utf-8')
        print(path.stem, times[name])

if __name__ == '__main__': main()
