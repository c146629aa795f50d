"A reader's machine: the wheel alone, in an environment of its own and an empty folder."
import json, subprocess
from pathlib import Path

import pytest

import resnotes
from resnotes.experiments import experiments
from resnotes.ledger import read_ledger
from resnotes.records import load, recorded_experiments

root = Path(__file__).parents[1]
modules = sorted(p.stem for p in (root/'resnotes').glob('*.py') if p.stem[0] != '_')

everything = '''
import contextlib, importlib, io, json, sys, torch
from resnotes.init import depth_scaled_normal
variance = depth_scaled_normal(torch.empty(16, 16, 8, 8), depth=100).var().item()
import matplotlib.pyplot as plt, resnotes
plt.style.use('resnotes.book')
for name in sys.argv[1:]: importlib.import_module(f'resnotes.{name}')
from resnotes.cli import main
from resnotes.records import recorded_experiments, results
names = recorded_experiments()
records = {name: len(results(name)) for name in names}
with contextlib.redirect_stdout(io.StringIO()) as said: code = main('claims', [])
print(json.dumps(dict(variance=variance, file=resnotes.__file__, path=sys.path, records=records, claims=[code, said.getvalue()])))
'''


core = '''
import json, sys
for name in json.loads(sys.argv[1]): sys.modules[name] = None      # as if it were not installed
import torch
from importlib.metadata import requires
from torch import nn
from resnotes import blocks, init, losses, metrics, resnet, samplers, signal, unet
from resnotes.diagnose import audit, initialize, residual_branches
model = unet.StrictUNet(unet.UNetConfig((1, 1, 1), width=4))
x, mask = torch.randn(2, 1, 16, 16), torch.rand(2, 16, 16) < .4
print(init.init_layers(model, 'he_normal'), residual_branches(model, x), initialize(model, x, rule='he_normal'))
print(audit(model, x), signal.measure(model, x))
for loss in (losses.IoULoss(), losses.LovaszLoss()): loss(model(x), mask).backward()
print(losses.lovasz_softmax(torch.randn(2, 3, 16, 16), mask.long()), metrics.iou(model(x)[:,0] > 0, mask))
import resnotes.networks
print(resnotes.networks.build('resnet20')(torch.randn(2, 3, 32, 32)).shape)
try: import resnotes.learner
except ModuleNotFoundError as error: said = str(error)
print(json.dumps([said, [r for r in requires('resnotes') if 'extra' not in r]]))
'''


@pytest.fixture
def run(reader, alone, tmp_path):
    "Runs a program of the reader's environment in an empty folder and returns what it prints"
    def run(program, *args):
        r = subprocess.run([reader/program, *args], cwd=tmp_path, capture_output=True, text=True, env=alone)
        assert r.returncode == 0, r.stdout + r.stderr
        return r.stdout
    return run


def test_the_wheel_holds_all_it_needs(run, reader):
    "Every module, the style of the pictures, the records that the chapters read, and the claims with their verdicts"
    told = json.loads(run('python', '-c', everything, *modules))
    assert Path(told['file']).is_relative_to(reader.parent) and 'site-packages' in told['file']
    assert not any(Path(p).is_relative_to(root) and 'site-packages' not in p for p in told['path']), told['path']
    assert told['variance'] == pytest.approx(1/(8*8*16*100), rel=.05)
    assert list(told['records']) == recorded_experiments(root/'results') and min(told['records'].values()) > 0
    code, said = told['claims']
    assert code == 0 and [l.split()[0] for l in said.splitlines()] == [c.number for c in read_ledger()]


def test_a_chapter_reads_the_shipped_records_from_an_empty_folder(run, tmp_path):
    path = next((root/'nbs').glob('*_stats.ipynb'))
    nb = json.loads(path.read_text())
    nb['cells'] = [c for c in nb['cells'] if not ''.join(c['source']).startswith(('#| slow', '#| cuda'))]
    (tmp_path/path.name).write_text(json.dumps(nb))
    run('python', '-c', f"import nbformat, nbclient; nbclient.execute(nbformat.read('{path.name}', 4), cwd='.')")


def test_the_command_runs_an_experiment_in_an_empty_folder(run, tmp_path):
    name = 'digits-he-depth-scaled'
    assert 'One seed' in run('resnotes', 'run', name, '--preset', 'smoke')
    records = load(tmp_path/'results'/f'{name}.jsonl')
    assert len(records) == len(experiments[name].trials('smoke'))
    for record in records:
        assert record['commit'] is None and record['dirty'] is None
        assert record['versions']['resnotes'] == resnotes.__version__


def test_the_core_works_without_what_training_needs(run):
    "And what training needs is named together with the command that installs it"
    away = ['fastai', 'fastprogress', 'matplotlib', 'pandas', 'scipy', 'sklearn', 'PIL', 'joblib', 'filelock', 'torchvision', 'accelerate', 'IPython']
    said, requirements = json.loads(run('python', '-c', core, json.dumps(away)).splitlines()[-1])
    assert said.startswith('resnotes.learner needs ') and said.endswith("which is not installed: pip install 'resnotes[train]'")
    assert [r.split('>')[0] for r in requirements] == ['torch', 'numpy', 'fastcore']
