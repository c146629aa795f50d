"""Writes taki-cifar-cpu.jsonl, the runs that the chapter on training shows: one line per run, with what produced it.

Needs the folder that RESNOTES_DATA names, with cifar10 or cifar10_small in it. Some minutes on two cores."""
import json, os, platform, resource, subprocess
from pathlib import Path

import fastai, torch
from resnotes.train import cifar10, init_run

path = Path(__file__).with_name('taki-cifar-cpu.jsonl')
commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=path.parent, capture_output=True, text=True).stdout.strip()
dls = cifar10(n=5000, bs=32)
facts = dict(experiment='taki-cifar', preset='cpu', optimiser='Adam', bs=32, train_images=len(dls.train_ds), valid_images=len(dls.valid_ds),
             threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__, fastai=fastai.__version__, commit=commit)
arms = {'depth_scaled': dict(init='depth_scaled'), 'he': dict(init='he'), 'he, batch norm': dict(init='he', batch_norm=True)}


def rounded(v): return [float(f'{x:.6g}') for x in v] if isinstance(v, list) else v


lines = []
for arm, settings in arms.items():
    for seed in range(3):
        run = init_run(dls, seed=seed, depth=100, kernel=8, stride=4, epochs=1, lr=1e-3, **settings)
        run |= dict(final_accuracy=run['accuracy'][-1], best_valid_loss=min(run['valid_loss']))
        run |= dict(seconds=round(run['seconds'], 1), process_peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)
        lines.append(json.dumps(dict(arm=arm, **facts) | {k: rounded(v) for k, v in run.items()}))
        print(arm, seed, run['final_accuracy'])
part = path.with_suffix('.part')
part.write_text('\n'.join(lines) + '\n')
os.replace(part, path)
