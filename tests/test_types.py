"What a type checker sees: names of fixed sets as `Literal`, each equal to the table that the code looks in; no public name without a type"
import os, shutil, subprocess, sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from resnotes import checks, data, images, init, lab, learner, losses, networks, norm, resnet, samplers, starts, trial, unet
from resnotes.blocks import Order, ShortcutName, orders, shortcuts
from resnotes.init import FanInOut, FillName, PlainName, fillers, rule_name

root, script = Path(__file__).parents[1], Path(__file__).with_name('typed_user.py')


# one fact, once

tables = [(ShortcutName, shortcuts), (Order, orders), (init.Fan, FanInOut._fields), (norm.Placement, norm.placements),
          (norm.Where, norm.placements['blocks']), (samplers.DownName, samplers.downsamplers), (samplers.UpName, samplers.upsamplers),
          (data.Normalization, data.normalizations), (data.Polarity, data.polarities), (trial.Preset, trial.presets),
          (trial.DataName, trial.loaders), (trial.DataName, trial.sizes), (trial.LossName, trial.losses), (trial.DtypeName, trial.dtypes),
          (trial.OptimizerName, trial.optimizers), (trial.ScheduleName, trial.schedules)]

@pytest.mark.parametrize('alias, table', tables, ids=lambda v: '')
def test_a_literal_names_what_its_table_holds(alias, table): assert get_args(alias) == tuple(table)

def test_names_of_rules_are_those_of_the_tables_and_pytorchs():
    "Each table goes through `rule_name`, which knows PyTorch's names of the same rules"
    assert {rule_name(name) for name in get_args(FillName)} == set(fillers) and set(fillers) < set(get_args(FillName))
    assert {rule_name(name) for name in get_args(starts.RuleName)} == set(starts.rules) and set(get_args(FillName)) < set(get_args(starts.RuleName))
    assert {rule_name(name) for name in get_args(PlainName)} == {name for name in fillers if not name.startswith('depth_scaled')}
    assert {f'{theirs}_{kind}' for theirs in ('xavier', 'kaiming') for kind in ('normal', 'uniform')} == set(get_args(FillName)) - set(fillers)

def test_a_wrong_name_is_still_refused_when_nobody_checks_types():
    for make, alias in ((lambda name: losses.IoULoss(over=name), checks.Over), (lambda name: losses.IoULoss(reduction=name), losses.Reduction),
                        (lambda name: losses.LovaszLoss(name), losses.LovaszKind), (lambda name: losses.ClassIoULoss(classes=name), losses.WhichClasses),
                        (lambda name: learner.LogitLoss(print, reduction=name), losses.Reduction), (lambda name: unet.Join(name, 4), unet.Skip),
                        (lambda name: unet.UNetConfig((1,), block=name), unet.UNetBlock), (lambda name: networks.TowerConfig(2, block=name), networks.TowerBlock),
                        (lambda name: networks.TowerConfig(2, placement=name), networks.TowerPlacement), (lambda name: images.rle_encode(np.eye(2), name), images.RunOrder),
                        (lambda name: resnet.ResNetConfig((1,), 16, stem=name), resnet.Stem), (lambda name: resnet.ResNetConfig((1,), 16, block=name), resnet.ResNetBlock),
                        (lambda name: samplers.ResizeConv(2, 2, name), samplers.ResizeMode), (lambda name: samplers.DownPool(2, 2, name), samplers.PoolMode),
                        (lambda name: data.mask_pairs('.', missing=name), data.Missing), (lambda name: lab.sweep([], backend=name), lab.Backend)):
        with pytest.raises(ValueError, match=f"must be one of {', '.join(map(repr, get_args(alias)))}, got 'nowhere'"): make('nowhere')


# a script that runs, and that checkers accept

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with the script, and with images and masks for it"
    here = tmp_path_factory.mktemp('user')
    shutil.copy(script, here/'user.py')
    for part in ('images', 'masks'): (here/'folder'/part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(here/'folder'/'images'/f'{i}.png')
        Image.fromarray(np.uint8(255)*(rng.random((16, 16)) < .3)).save(here/'folder'/'masks'/f'{i}.png')
    return here

def run(place, *command):
    env = {**os.environ, 'PYTHONPATH': str(root), 'MYPYPATH': str(root), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)

def test_the_script_runs(place):
    done = run(place, sys.executable, 'user.py')
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((place/'out').iterdir())) == 8

wrong = '''
initialize(net, x, rule='he_norml')
initialize(net, x, rest='zero')
init_layers(net, 'glorot')
he_normal(nn.Linear(3, 4), mode='fan_inn')
audit('net', x)
BasicBlock(16, 16, order='pre')
Bottleneck(16, 4, 16, stride_in='5x5')
make_shortcut('identty', 16, 16)
ResNetConfig((3,), 16, stem='cifr')
UNetConfig((1,), placement='block')
UNetConfig((1,), up='nearst')
upsampler('conv3', 1, 1)
IoULoss(over='pixels')
LovaszLoss('hing')
ClassIoULoss(classes='some')
iou(y, y, over='imag')
masks('folder', normalize='sett')
masks('folder', runs='t.csv', run_order='rows')
masks('folder', missing='ignore')
Trial('mine', 'he', 'tiny', 0, 'digits', 'tower1', 1, .1)
Trial('mine', 'he', 'cpu', 0, 'digits', 'tower1', 1, .1, schedule='stepz')
sweep([trial], backend='dusk')
predict_folder(learn, 'folder', run_order='F')
print(report.gradiant_ratio)
print(trial.idd)
print(unet.config.sides)
'''.strip().splitlines()

def checker(name):
    "The program beside this Python or on the path"
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found: pytest.skip(f"{name} is not installed: pip install {name}")
    return found

def complaints(said, file):
    "Numbers of the lines of a file of which a checker complains"
    return {int(line.split(':')[1]) for line in said.splitlines() if f'{file}:' in line and 'error' in line}

def checked(place, *command):
    "What is said of the script, and of a copy of it that ends in wrong lines"
    good = script.read_text().splitlines()
    (place/'wrong.py').write_text('\n'.join([*good, *wrong, '']))
    here = run(place, *command, 'user.py')
    assert here.returncode == 0, here.stdout[-3000:] + here.stderr[-1000:]
    found = complaints(run(place, *command, 'wrong.py').stdout, 'wrong.py')
    assert found == set(range(len(good) + 1, len(good) + len(wrong) + 1)), [line for i, line in enumerate(wrong, len(good) + 1) if i not in found]

def test_mypy_accepts_the_script_and_finds_what_is_wrong(place):
    checked(place, checker('mypy'), '--strict', '--follow-imports=silent', '--no-error-summary', '--python-executable', sys.executable)

def test_pyright_knows_every_name_of_the_script_and_finds_what_is_wrong(place):
    "In its strict mode a type that is not known, or only in part, is an error. It takes no settings beside names of files"
    settings = place/'pyrightconfig.json'
    settings.write_text('{"typeCheckingMode": "strict"}')
    try: checked(place, checker('pyright'), '--pythonpath', sys.executable)
    finally: settings.unlink()
