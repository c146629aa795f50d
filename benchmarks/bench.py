"""The book beside its peers: every row ours and theirs in turn, a line of JSON for each.

    python benchmarks/bench.py [--only ROW ...] [--runs N] [--smoke] [--out FILE] [--list]

The records of the book are `results/bench-cpu.jsonl`; a row that is measured again replaces its old lines."""
import argparse, importlib, sys, time, traceback, warnings
from pathlib import Path

from resnotes.records import load, to_line, write_whole
from timing import ROWS, records

here = Path(__file__).resolve().parent
book = here.parent/'results'/'bench-cpu.jsonl'
modules = ('losses', 'steps', 'memory', 'starts', 'depth', 'callbacks', 'data', 'lab')


def line(r):
    "One record for the eye"
    ours = f"{r['what']}{': ' + r['ours_is'] if 'ours_is' in r else ''}"
    name = f"{ours}, beside {r['beside']}"
    if 'left_out' in r: return f"{name}: left out: {r['left_out']}"
    reach = '' if r['reach'] is None else f"  reach {r['reach']:.2f}: {'yes' if r['median'] <= r['reach'] else 'NO'}"
    return f"{name:100} x{r['median']:.3g}  ({r['low']:.3g}-{r['high']:.3g}){reach}"


def save(file, name, fresh):
    "Replace the lines of a row"
    kept = [r for r in load(file, id=str) if r['row'] != name]
    write_whole(file, lambda f: f.writelines(to_line(r) for r in [*kept, *fresh]))


def main(*args):
    for name in modules: importlib.import_module(f'bench_{name}')
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', nargs='+', choices=ROWS, metavar='ROW',
                        default=[r for r in ROWS if r != 'tests'])
    parser.add_argument('--smoke', action='store_true', help='tiny sizes, one pair each')
    parser.add_argument('--runs', type=int, help='pairs of each comparison; as many as four seconds hold by default')
    parser.add_argument('--out', type=Path, help='file of records; the book\'s own by default')
    parser.add_argument('--list', action='store_true', help='say what the rows are')
    args = parser.parse_args(args or None)
    if args.list: return print('\n'.join(f'{name:24} {what}' for name, (_, what, *_) in ROWS.items()))
    out = args.out or (here.parent/'_runs'/'bench-smoke.jsonl' if args.smoke else book)
    warnings.filterwarnings('ignore')
    failed = []
    for name in args.only:
        start, fresh = time.perf_counter(), []
        try:
            for r in records(name, args.smoke, args.runs):
                print(line(r), flush=True)
                fresh.append(r)
        except Exception:   # the other rows are measured all the same
            traceback.print_exc()
            failed.append(name)
        save(out, name, fresh)
        print(f'    {name}: {time.perf_counter() - start:.0f} s', flush=True)
    return f"failed: {', '.join(failed)}" if failed else None


if __name__ == '__main__': sys.exit(main())
