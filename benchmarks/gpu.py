"""All that waits for a GPU, in one run of about ten minutes on a large card:

    python benchmarks/gpu.py                            writes results/bench-gpu.jsonl
    python benchmarks/gpu.py --size tiny --device cpu   tries the script anywhere, in seconds

The tests that need CUDA come first. Each comparison is a record as those of `bench.py`, written when it is there,
so a run that is killed keeps what it has; after `--minutes` no other comparison is begun."""
import argparse, copy, statistics, subprocess, sys, tempfile, time, traceback, warnings
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from resnotes.speed import Bf16, ChannelsLast, Compiled, CudaGraphs, _Operators
import bench, timing
from bench_losses import hinges
from bench_memory import in_segments
from bench_steps import batch, build, pair_of, stepper, steps
from timing import Left, Value, last_line, row

root = Path(__file__).resolve().parents[1]
book = root/'results'/'bench-gpu.jsonl'


def ways(smoke):
    "Callbacks by the way to take a step; a tiny one is traced and not compiled, which takes minutes"
    compiled = partial(Compiled, True, backend='eager' if smoke else 'inductor')
    return {'float32': tuple,
            'channels last': lambda: [ChannelsLast()],
            'bfloat16': lambda: [Bf16()],
            'bfloat16, channels last': lambda: [Bf16(), ChannelsLast()],
            'captured, bfloat16, channels last': lambda: [Bf16(), ChannelsLast(), CudaGraphs()],
            'compiled by unit, bfloat16, channels last':
                lambda: [Bf16(), ChannelsLast(), compiled()],
            'compiled by unit and captured, bfloat16, channels last':
                lambda: [Bf16(), ChannelsLast(), compiled(), CudaGraphs()]}


*eager, captured, compiled, both = ways(False)
some = eager[0], eager[-1], captured     # as it is, the best of the eager ones, and one that launches nothing
nets = {'strict_unet272': 32, 'preact1001': 128}    # images of a batch


def counts(command, seconds):
    "Numbers of tests that passed, failed and were skipped in a run of pytest; None if the time was up"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'tests.xml'
        try: subprocess.run([sys.executable, '-m', 'pytest', '-q', *command, '--junitxml', file],
                            cwd=root, timeout=seconds, capture_output=True)
        except subprocess.TimeoutExpired: return None
        suite = ElementTree.parse(file).find('testsuite').attrib
    tests, skipped = int(suite['tests']), int(suite['skipped'])
    failed = int(suite['failures']) + int(suite['errors'])
    return dict(passed=tests - skipped - failed, failed=failed, skipped=skipped)


@row('tests that wait for CUDA')
def gpu_tests(smoke, device):
    files = [p for p in sorted((root/'tests').glob('test_*.py')) if 'cuda.is_available' in p.read_text()]
    found = counts([*(files[:1] if smoke else files), '-k', 'cuda'], 180)
    if not found:
        yield Left('all of them', 'not done in 180 seconds')
        return
    tried = found['passed'] + found['failed']
    if not tried: yield Left('all of them', f"no CUDA device, {found['skipped']} skipped")
    else: yield Value('all of them', [found['passed']/tried], 'tests', ours=found['passed'],
                      theirs=tried, more=found)


def every_way(name, smoke, device):
    "The eager ways beside float32, then those that launch less beside float32 and bfloat16"
    data, made = batch(build(name, smoke), smoke, nets[name], device=device), ways(smoke)
    def against(plain, compared, reach):
        return steps(name, smoke, {way: made[way] for way in compared}, data, (plain, made[plain]),
                     reach=reach, runs=5)
    yield from against('float32', eager[1:], None)
    yield from against('float32', (captured, compiled, both), 1/4)
    yield from against('bfloat16', (captured, compiled, both), 1/2.5)


@row('step of strict_unet272, 32 images of 101 x 101')
def gpu_unet272(smoke, device): yield from every_way('strict_unet272', smoke, device)


@row('step of preact1001, 128 images of 32 x 32')
def gpu_preact1001(smoke, device): yield from every_way('preact1001', smoke, device)


@row('step of preact1001 beside a wide net, 128 images of 32 x 32', reach=2)
def gpu_thin_beside_wide(smoke, device):
    "How many times as long the thin net takes; both in the same way"
    thin, wide = (build(name, smoke) for name in ('preact1001', 'wrn_40_4'))
    data = batch(thin, smoke, nets['preact1001'], device=device)
    for way in some:
        cbs = ways(smoke)[way]
        yield pair_of('wrn_40_4', (thin, data, cbs), (wide, data, cbs), ours_is=way, runs=5)


class Traffic(_Operators):
    "Counts the bytes that operators read and write, if each takes every tensor once"
    bytes = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before, out = self.n, super().__torch_dispatch__(func, types, args, kwargs)
        if self.n > before:
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        return out


def peaks(smoke, device):
    "What the card does at its best: products of matrices, a copy, and an operator with nothing to do"
    def best(run): return min(timing.seconds(run, clock_of(device)) for _ in range(5))
    n, many = (256, 2**20) if smoke else (8192, 2**30)
    torch.set_float32_matmul_precision('high')   # as convolutions are: in TF32 where there is that
    found = {}
    for name, dtype in {'float32': torch.float32, 'bfloat16': torch.bfloat16}.items():
        a = torch.randn(n, n, device=device).to(dtype)
        found[name] = 2*n**3/best(lambda: a @ a)
    torch.set_float32_matmul_precision('highest')
    x, one = torch.empty(many, dtype=torch.uint8, device=device), torch.zeros(1, device=device)
    y = torch.empty_like(x)
    found['bytes'] = 2*many/best(lambda: y.copy_(x))
    found['launch'] = best(lambda: [one.add_(1) for _ in range(1000)])/1000
    return found


def clock_of(device): return timing.gpu_clock if device == 'cuda' else time.perf_counter


@row('a step, beside what the counted bytes and operations need at the measured peaks')
def gpu_roofline(smoke, device):
    best = peaks(smoke, device)
    for name, n in nets.items():
        model = build(name, smoke)
        data = batch(model, smoke, n, device=device)
        for way in some: yield roof(name, way, model, data, best, ways(smoke))


def roof(name, way, model, data, best, made):
    "Seconds of a step over those of the nearest of two roofs, and what all three bounds would take"
    what = 'the nearer of the two roofs'
    seen = way.removeprefix('captured, ')   # a step that is replayed calls no operators
    try: plain, step = (stepper(copy.deepcopy(model), *data, made[w]()) for w in (seen, way))
    except RuntimeError as e: return Left(f'{what} ({name}, {way})', last_line(e))
    for run in (plain, step): run()
    with FlopCounterMode(display=False) as flops, Traffic() as traffic: plain()
    took = statistics.median(timing.seconds(step, clock_of(data[0].device.type)) for _ in range(5))
    kind = 'bfloat16' if 'bfloat16' in way else 'float32'
    needs = dict(arithmetic=flops.get_total_flops()/best[kind], memory=traffic.bytes/best['bytes'],
                 launches=traffic.n*best['launch'] if way in eager else 0)
    roofs = max(needs['arithmetic'], needs['memory'])
    more = dict(flops=flops.get_total_flops(), bytes=traffic.bytes, operators=traffic.n,
                needs=needs, bound=max(needs, key=needs.get), peaks=best)
    return Value(what, [took/roofs], 'seconds', f'{name}, {way}', ours=took, theirs=roofs, more=more)


@row('memory and time of a step in segments')
def gpu_memory(smoke, device):
    sides = {'strict_unet272': (101, 14), 'preact1001': (32, (4, 2, 0))}
    for name, n in nets.items():
        side, segments = sides[name]
        model = build(name, smoke)
        x, _ = batch(model, smoke, n, side, device)
        for item in in_segments(model, x, segments):
            yield item._replace(ours_is=f'{name}, {item.ours_is}')


@row('Lovász hinge, 32 masks of 101 x 101')
def gpu_lovasz(smoke, device):
    for trained in (True, False): yield next(hinges(smoke, trained, device))   # beside its authors'


@row('chapters with cells for CUDA')
def gpu_chapters(smoke, device):
    chapters = [p for p in sorted((root/'nbs').glob('*.ipynb')) if '"#| cuda' in p.read_text()]
    run = 'import sys; from nbdev.test import nbdev_test; nbdev_test(sys.argv[1], flags="cuda", n_workers=0)'
    def passes(chapter):
        command = [sys.executable, '-c', 'pass' if smoke else run, chapter]
        try: return not subprocess.run(command, cwd=root, timeout=180).returncode
        except subprocess.TimeoutExpired: return False
    ran = [passes(chapter) for chapter in chapters]
    yield Value('all of them', [sum(ran)/len(ran)], 'chapters', ours=sum(ran), theirs=len(ran))


def main(*args):
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    mine = [name for name, (f, *_) in timing.ROWS.items() if f.__module__ == __name__]
    parser.add_argument('--size', choices=('full', 'tiny'), default='full')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--only', nargs='+', choices=mine, metavar='ROW', default=mine)
    parser.add_argument('--minutes', type=float, default=9, help='after these no other comparison is begun')
    parser.add_argument('--out', type=Path, help='file of records; the book\'s own by default')
    args = parser.parse_args(args or None)
    smoke, begun = args.size == 'tiny', time.perf_counter()
    if args.device == 'cpu' and not smoke:
        parser.error('--device cpu takes --size tiny: the full size needs a GPU')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('no CUDA device; --size tiny --device cpu tries the script without one')
    out = args.out or (root/'_runs'/'bench-gpu-tiny.jsonl' if smoke else book)
    warnings.filterwarnings('ignore')
    failed = []
    for name in args.only:
        fresh = []
        try:
            for r in timing.records(name, smoke, go_on=not smoke, device=args.device):
                print(bench.line(r), flush=True)
                fresh.append(r)
                bench.save(out, name, fresh)
                if time.perf_counter() - begun > 60*args.minutes: return f'the time was up during {name}'
        except Exception:   # the other rows are measured all the same
            traceback.print_exc()
            failed.append(name)
        print(f'    {name}: {time.perf_counter() - begun:.0f} s since the start', flush=True)
    return f"failed: {', '.join(failed)}" if failed else None


if __name__ == '__main__': sys.exit(main())
