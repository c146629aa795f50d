"Paired timing: two callables in turn, so that a drift of the machine's speed hits both."
import statistics, time


def seconds(run, clock=time.process_time):
    "Seconds of one call: of the processor, which other work on the machine changes little, or by another clock"
    start = clock()
    run()
    return clock() - start


def ratio(ours, theirs, runs=9, clock=time.process_time):
    "Median, minimum and maximum of seconds(ours)/seconds(theirs) over paired runs, after one warm-up"
    ours()
    theirs()
    ratios = sorted(seconds(ours, clock)/seconds(theirs, clock) for _ in range(runs))
    return statistics.median(ratios), ratios[0], ratios[-1]


def report(what, ours, theirs, runs=9, clock=time.process_time):
    "Print one line: what is compared, the median ratio and its range"
    median, low, high = ratio(ours, theirs, runs, clock)
    print(f'{what:72} x{median:.2f}  ({low:.2f}-{high:.2f})', flush=True)
