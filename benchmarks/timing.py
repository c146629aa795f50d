"""One way to measure: ours and theirs in turn, so that a drift of the machine's speed hits both.

Files `bench_*.py` hold rows: functions that yield what is compared. `bench.py` runs them and writes the records."""
import cProfile, gc, importlib, os, platform, pstats, re, statistics, sys, time
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from typing import Callable, NamedTuple

import torch


class Pair(NamedTuple):
    "Two callables to be timed in turn; their time is the unit"
    beside:str                       # what ours is held against
    ours:Callable                    # without arguments
    theirs:Callable                  # the same, or made from the imported `package`
    package:str = None               # that `theirs` is made from
    clock:Callable = time.process_time  # `perf_counter` where several threads or processes work
    ours_is:str = ''                 # what ours is, if the row does not say
    reach:float = None               # ratio to be reached, at most; None: that of the row
    runs:int = None                  # pairs; None: as many as four seconds hold, from 3 to 15
    warm:bool = True                 # call both once before, which does not count
    profile:str = 'operators'        # where the time goes: by 'operators', by 'functions', or ''


class Value(NamedTuple):
    "A ratio that is no ratio of times, or a limit in seconds"
    beside:str
    ratios:list
    unit:str
    ours_is:str = ''
    reach:float = None
    ours:float = None
    theirs:float = None
    more:dict = {}                   # further fields of the record


class Left(NamedTuple):
    "What cannot be measured here, and why"
    beside:str
    why:str


ROWS = {}

def row(what,         # ours, in words
        reach=None,   # ratio to be reached, at most
        threads=1):   # of torch
    "Register a function of `smoke` that yields `Pair`, `Value` and `Left`"
    def register(f):
        ROWS[f.__name__] = (f, what, reach, threads)
        return f
    return register


def seconds(run, clock=time.process_time):
    "Seconds of one call: of the processor, which other work on the machine changes little, or by another clock"
    start = clock()
    run()
    return clock() - start


def gpu_clock():
    "Wall seconds, when the GPU has done what it was handed"
    torch.cuda.synchronize()
    return time.perf_counter()


def paired(ours, theirs, runs=9, clock=time.process_time, warm=True):
    "Seconds of both over paired runs, in an order that alternates, after one warm-up"
    if warm: [f() for f in (ours, theirs)]
    times = []
    for i in range(runs):
        if i % 2:
            late = seconds(theirs, clock)
            times.append((seconds(ours, clock), late))
        else: times.append((seconds(ours, clock), seconds(theirs, clock)))
    return times


def ratio(ours, theirs, runs=9, clock=time.process_time):
    "Median, minimum and maximum of seconds(ours)/seconds(theirs) over paired runs, after one warm-up"
    ratios = sorted(a/b for a, b in paired(ours, theirs, runs, clock))
    return statistics.median(ratios), ratios[0], ratios[-1]


def report(what, ours, theirs, runs=9, clock=time.process_time):
    "Print one line: what is compared, the median ratio and its range"
    median, low, high = ratio(ours, theirs, runs, clock)
    print(f'{what:72} x{median:.2f}  ({low:.2f}-{high:.2f})', flush=True)


_kept = []   # operators that were defined

def load(package):
    "Import a package; a torchvision built for another device lacks operators that no row needs"
    try: return importlib.import_module(package)
    except RuntimeError as e:
        if 'torchvision' not in str(e): raise
    stale = package.partition('.')[0], 'torchvision'
    for name in [n for n in sys.modules if n.partition('.')[0] in stale]: del sys.modules[name]
    _kept.append(torch.library.Library('torchvision', 'FRAGMENT'))
    for op in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, op):
            _kept[-1].define(op + '(Tensor boxes, Tensor scores, float threshold) -> Tensor')
    return importlib.import_module(package)


def calls(run, held):
    "As many calls as these seconds hold, one at least"
    for _ in range(max(1, min(200, int(held/seconds(run, time.perf_counter))))): run()


def operators(run, held=.3, n=10):
    "The `n` costliest operators, each with its share of the time, and what is spent outside of them"
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        whole = 1e6*seconds(lambda: calls(run, held), time.perf_counter)
    found = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    spent = sum(e.self_cpu_time_total for e in found)
    outside = ['outside of operators', max(0, 1 - spent/whole), 1]
    rows = [[e.key[:60], e.self_cpu_time_total/max(whole, spent), e.count] for e in found[:n]]
    return sorted([*rows, outside], key=lambda r: -r[1])[:n]


def functions(run, held=.3, n=10):
    "The `n` costliest functions, each with its share of the time"
    with cProfile.Profile() as seen: calls(run, held)
    stats = pstats.Stats(seen).stats
    whole = sum(own for _, _, own, _, _ in stats.values())
    def name(key):
        if key[0] != '~': return f'{os.path.basename(key[0])}: {key[2]}'
        return re.sub(r"<(?:built-in )?method (?:'?([\w.]+)'? of '([\w.]+)' objects|([\w.]+))>",
                      lambda m: m[3] or f'{m[2]}.{m[1]}', key[2])
    found = sorted(stats.items(), key=lambda kv: -kv[1][2])
    return [[name(k)[:60], v[2]/whole, v[1]] for k, v in found[:n]]


def machine():
    "The processor, its cores, and how busy it was in the last minute"
    try: lines = open('/proc/cpuinfo').read().splitlines()
    except OSError: lines = []
    facts = dict(l.split(':', 1) for l in lines if ':' in l)
    facts = {k.strip(): v.strip() for k, v in facts.items()}
    flags = sorted(set(facts.get('flags', '').split()) & {'avx2', 'avx512f', 'avx512_bf16', 'amx_bf16'})
    name = facts.get('model name') or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {' '.join(flags) or 'flags unknown'}"


def gpu():
    "The GPU, its memory, and what stands between it and PyTorch"
    card = torch.cuda.get_device_properties(0)
    return dict(gpu=f'{card.name}, {card.total_memory/2**30:.0f} GiB', cuda=torch.version.cuda,
                cudnn=torch.backends.cudnn.version())


def here(device='cpu'):
    "Where and with which versions"
    from resnotes import __version__
    card = gpu() if device == 'cuda' else {}
    return dict(device=device, machine=machine(), **card, load=round(os.getloadavg()[0], 2),
                python=platform.python_version(), torch=torch.__version__, resnotes=__version__,
                finished=datetime.now(timezone.utc).isoformat(timespec='seconds'))


def last_line(e):
    "What an error says, without what fastai says of the place"
    return (str(e).strip().splitlines() or [''])[-1].strip()


def how_often(pair, runs):
    "Pairs that four seconds hold, if no number is asked for"
    if runs or pair.runs: return min(runs or pair.runs, pair.runs or runs)
    clock = pair.clock if pair.clock is gpu_clock else time.perf_counter
    both = seconds(pair.ours, clock) + seconds(pair.theirs, clock)
    return max(3, min(15, int(4/both)))


def timed(pair, runs, look):
    "The figures of a pair: ratio, its range, both times, and where ours goes if it misses its reach"
    runs = how_often(pair, runs)
    times = paired(pair.ours, pair.theirs, runs, pair.clock, pair.warm)
    ratios = sorted(a/b for a, b in times)
    found = dict(median=statistics.median(ratios), low=ratios[0], high=ratios[-1], runs=runs,
                 ours=statistics.median(a for a, _ in times),
                 theirs=statistics.median(b for _, b in times), unit='seconds',
                 clock='processor' if pair.clock is time.process_time else 'wall')
    if not pair.profile or pair.reach is None or not (look or found['median'] > pair.reach):
        return found
    ways = dict(operators=operators, functions=functions)
    return found | dict(costs=ways[pair.profile](pair.ours, 0 if look else .3), costs_by=pair.profile)


def measured(name, item, smoke, runs, device='cpu'):
    "The record of what a row yields"
    where, preset = partial(here, device), 'gpu' if device == 'cuda' else 'cpu'
    _, what, reach, threads = ROWS[name]
    record = dict(id=f'{name}/{item.beside}', row=name, what=what, beside=item.beside, reach=reach,
                  threads=threads, preset='smoke' if smoke else preset)
    if isinstance(item, Left): return record | dict(left_out=item.why) | where()
    record['reach'] = reach if item.reach is None else item.reach
    if item.ours_is: record |= dict(id=f'{name}/{item.ours_is}/{item.beside}', ours_is=item.ours_is)
    if isinstance(item, Value):
        ratios = sorted(item.ratios)
        return record | dict(median=statistics.median(ratios), low=ratios[0], high=ratios[-1],
                             runs=len(ratios), ours=item.ours, theirs=item.theirs,
                             unit=item.unit) | item.more | where()
    item = item._replace(reach=record['reach'], clock=gpu_clock if device == 'cuda' else item.clock)
    if item.package:
        try: theirs = item.theirs(load(item.package))
        except ImportError as e: return record | dict(left_out=f'{e}') | where()
        record['version'] = version(item.package.partition('.')[0])
        item = item._replace(theirs=theirs)
    return record | timed(item, runs, smoke) | where()


def records(name, smoke=False, runs=None, go_on=False, **where):
    "Measure a row, and yield its records; of what fails, if it is to go on, why it is left out"
    make, _, _, threads = ROWS[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for item in make(smoke, **where):
        try: record = measured(name, item, smoke, 1 if smoke else runs, **where)
        except Exception as e:
            if not go_on: raise
            what = f"{item.beside} ({getattr(item, 'ours_is', '')})"
            why = f'{type(e).__name__}: {last_line(e)}'
            record = measured(name, Left(what, why), smoke, runs, **where)
        yield record
        del item
        gc.collect()
        torch.cuda.empty_cache()   # nothing without a GPU
    torch._dynamo.reset()
