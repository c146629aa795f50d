"Paired timing: two callables in turn, so that a drift of the machine's speed hits both."
import statistics, time


def seconds(run):
    "Processor seconds of one call"
    start = time.process_time()
    run()
    return time.process_time() - start


def ratio(ours, theirs, runs=9):
    "Median, minimum and maximum of seconds(ours)/seconds(theirs) over paired runs, after one warm-up"
    ours(), theirs()
    ratios = sorted(seconds(ours)/seconds(theirs) for _ in range(runs))
    return statistics.median(ratios), ratios[0], ratios[-1]


def report(what, ours, theirs, runs=9):
    "Print one line: what is compared, the median ratio and its range"
    median, low, high = ratio(ours, theirs, runs)
    print(f'{what:60} x{median:.2f}  ({low:.2f}-{high:.2f})')
