"""Do the tests notice when the code is wrong? `python tests/mutate.py MODULE` changes one place of a module at a time and runs its tests.

A mutant is the module with one operator, number, comparison or truth value changed. One process imports what is slow; each mutant
lives in a fork of it, so it costs its tests and no import. First the tests run once as things are, and each one's lines and seconds are
noted: a mutant meets the tests that pass its place, and dies at the first that fails. Those that take more than `--slow` seconds are
left out. What no test notices is tried on the module's chapter, if that takes less than twenty seconds, with the module in the place of
its exported cells. Survivors are printed as they read, to be killed by a new assertion or explained in tests/mutants.toml; the next run
of the same module tries them alone."""
import argparse, ast, contextlib, gc, hashlib, importlib.abc, importlib.util, io, itertools, json, os, random, re, resource, signal, sys, tempfile, time, tomllib
os.environ.setdefault('OMP_NUM_THREADS', '1')   # before torch is there
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
         ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
         ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And}


def file_of(module): return root/'resnotes'/f'{module}.py'


def changes(node):
    "Every way to change one node: (what is set, its new value)"
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in swaps: yield 'op', swaps[type(node.op)]()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub): yield 'op', ast.UAdd()
    if isinstance(node, ast.Compare) and len(node.ops) == 1: yield 'ops', [swaps[type(node.ops[0])]()]
    if isinstance(node, ast.IfExp): yield 'test', ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.If): yield 'test', ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Constant) and type(node.value) is bool: yield 'value', not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)): yield 'value', node.value + 1 if node.value < 2 else node.value*2


def places(source):
    """(index of a node, which of its changes, its line, the lines that tell who meets it, the lines around it) for every mutant

    What a function's head or the module itself evaluates is met by those who pass the function's body, or a line that reads the name
    set. Annotations and docstrings are left alone."""
    tree = ast.parse(source)
    left_alone = {id(n) for f in ast.walk(tree) for a in (getattr(f, 'annotation', None), getattr(f, 'returns', None)) if a for n in ast.walk(a)}
    body, around = {}, {}   # of a node's id: its lines where it stands in the body of a function, and the lines of that function
    read = {}               # of a name: the lines that read it
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load): read.setdefault(node.id, set()).add(node.lineno)
    for top in tree.body:
        names = [t.id for t in (*getattr(top, 'targets', ()), getattr(top, 'target', None)) if isinstance(t, ast.Name)]
        for n in ast.walk(top): body[id(n)], around[id(n)] = set().union(*(read.get(name, ()) for name in names)), set()
    for f in ast.walk(tree):   # outer functions come first, and the inner ones have the last word
        if not isinstance(f, ast.FunctionDef): continue
        inside = set(range(f.body[0].lineno, f.end_lineno + 1))
        for n in ast.walk(f): body[id(n)], around[id(n)] = inside, inside
        for n in (n for part in f.body for n in ast.walk(part)):
            where = n.test if isinstance(n, ast.If) else n
            if hasattr(where, 'lineno'): body[id(n)] = set(range(where.lineno, where.end_lineno + 1))
    for i, node in enumerate(ast.walk(tree)):
        if id(node) in left_alone: continue
        for k, _ in enumerate(changes(node)): yield i, k, node.lineno, body.get(id(node), set()), around.get(id(node), set())


def mutant(source, i, k):
    "The module with the k-th change of the i-th node"
    tree = ast.parse(source)
    node = next(n for j, n in enumerate(ast.walk(tree)) if j == i)
    name, value = list(changes(node))[k]
    setattr(node, name, value)
    return ast.unparse(ast.fix_missing_locations(tree))


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Imports one module from a source that is given"
    def __init__(self, name, path, source): self.name, self.path, self.source = name, path, source
    def find_spec(self, name, path, target=None):
        if name == self.name: return importlib.util.spec_from_file_location(name, self.path, loader=self)
    def create_module(self, spec): return None
    def get_code(self, name): return compile(self.source, str(self.path), 'exec')   # `python -m` asks for it
    def exec_module(self, module): exec(self.get_code(self.name), module.__dict__)


def used(): return sum(os.times()[:4])   # processor seconds, those of children too


class Note:
    "Which lines of a file each test passes, and the seconds it takes; one that takes far too long is cut off"
    def __init__(self, file, out, slow): self.file, self.out, self.slow, self.tests = str(file), out, slow, {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        lines, began = set(), used()
        def line(frame, event, arg): return lines.add(frame.f_lineno) or line
        sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename == self.file else None)
        yield
        sys.settrace(None)
        self.tests[item.nodeid] = used() - began, sorted(lines)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        def cut(*_): raise TimeoutError
        signal.signal(signal.SIGVTALRM, cut)
        signal.setitimer(signal.ITIMER_VIRTUAL, 4*self.slow)
        done = yield
        if done.excinfo and not signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]: done.force_exception(pytest.skip.Exception('too slow'))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def pytest_sessionfinish(self): Path(self.out).write_text(json.dumps(self.tests))


class Order:
    """The tests that pass a place, and every test where none is known to; the very slow not at all

    Those of a few milliseconds come first, then those that see most of the function, since they go where others turn back. After ten
    seconds of them it is enough, but for what stands in no function."""
    def __init__(self, noted, lines, around, slow):
        quick = {test: (seconds > .01, -len(around & set(passed)), seconds) for test, (seconds, passed) in noted.items() if seconds <= slow}
        met = sorted((rank, test) for test, rank in quick.items() if not lines.isdisjoint(noted[test][1])) or sorted((rank, test) for test, rank in quick.items())
        spent = itertools.accumulate((rank[-1] for rank, _ in met), initial=0)
        self.rank = {test: rank for (rank, test), before in zip(met, spent) if before < 10 or not around}

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])


def in_fork(module, source, seconds, function):
    "The exit code of a function in a fork with this source; not 0 when it takes too long or more than 6 GiB"
    pid = os.fork()
    if pid:
        try: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGKILL)
            raise
    code = 1
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)   # of the processor; its default action ends the process
        signal.alarm(10*seconds)                        # for what waits instead of working
        size = int(Path('/proc/self/statm').read_text().split()[0])*os.sysconf('SC_PAGE_SIZE')
        resource.setrlimit(resource.RLIMIT_AS, (size + 6*2**30,)*2)
        import resnotes   # its own finder first, so that ours stands before it
        sys.meta_path.insert(0, Instead(f'resnotes.{module}', file_of(module), source))
        with open(os.devnull, 'w') as null: os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
        code = function()
    finally: os._exit(code)


def run_tests(module, source, tests, seconds, *plugins):
    "Exit code of the tests with this source"
    return in_fork(module, source, seconds, lambda: pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-k', left_out.get(module, ''), *map(str, tests)], plugins))


def run_chapter(module, source, path, seconds):
    "Exit code of a chapter with this source"
    def run():
        from nbdev.test import test_nb
        return int(not test_nb(path, skip_flags=['slow', 'cuda'])[0])
    return in_fork(module, source, seconds, run)


def write_chapter(module, out):
    "The chapter of a module, its exported cells replaced by the module; whether there is one"
    for path in sorted((root/'nbs').glob('*.ipynb')):
        nb = json.loads(path.read_text())
        texts = [''.join(c['source']) for c in nb['cells']]
        if not any(f'#| default_exp {module}\n' in text + '\n' for text in texts): continue
        exported = [c for c, text in zip(nb['cells'], texts) if text.startswith('#| export')]
        for c in exported: c['source'] = ''
        exported[0]['source'] = f"import resnotes.{module}\nglobals().update({{k: v for k, v in vars(resnotes.{module}).items() if k[:2] != '__'}})"
        out.write_text(json.dumps(nb))
        return True
    return False


# (module, what is right, what is wrong, the test that notices): a factor, an exponent, an argument ignored, a limit
_arguments, _relu = 'init.py::test_every_argument_of_every_filler_counts', 'moments.py::test_relu_has_the_first_order_of_the_arc_cosine_kernel'
_grow, _limits = 'evidence.py::test_growth_and_gradients_are_judged_at_their_limits', 'limits.py::test_a_complaint_begins_at_its_limit'
formulas = [
    ('moments', 'Moments((1 + s*s)/2*self.second', 'Moments((1 + s*s)/4*self.second', 'moments.py::test_relu_of_white_noise_has_the_variance_that_a_norm_sees'),
    ('moments', 'self.second.sqrt()[None]/math.sqrt(2*math.pi)', '0*self.second.sqrt()[None]', _relu),
    ('moments', '(1 + s)/2*self.patterns', '(1 + s)/4*self.patterns', _relu),
    ('init', '_he(tensor, mode, negative_slope), generator)', "_he(tensor, 'fan_in', negative_slope), generator)", _arguments),
    ('init', '_he(tensor, mode, negative_slope), generator)', '_he(tensor, mode, 0.), generator)', _arguments),
    ('init', 'variance = _depth_scaled(tensor, depth, c, mode)', "variance = _depth_scaled(tensor, depth, c, 'fan_in')", _arguments),
    ('init', 'variance = _depth_scaled(tensor, depth, c, mode)', 'variance = _depth_scaled(tensor, depth, 1., mode)', _arguments),
    ('init', '_depth_scaled(tensor, depth, c, mode), generator)', '_depth_scaled(tensor, depth, 1., mode), generator)', _arguments),
    ('evidence', '_flat = math.sqrt(.95)', '_flat = math.sqrt(.75)', 'evidence.py::test_flat_is_less_than_a_twentieth_of_the_steepest_slope'),
    ('memory', 'self.add(storage.nbytes())', 'self.add(storage.nbytes()//2)', 'memory.py::test_peak_bytes'),
    ('causes', 'growth=1e3', 'growth=1e5', _grow), ('causes', 'growth=1e3', 'growth=3e2', _grow), ('causes', 'gradient=1e4', 'gradient=1e2', _grow),
    ('causes', 'gradient=1e4', 'gradient=1e6', _grow), ('causes', 'idle=.6', 'idle=.95', 'evidence.py::test_idle_units_are_judged_at_six_tenths'),
    ('causes', 'sensitivity=40.', 'sensitivity=100.', _limits), ('causes', 'fading=1e-5', 'fading=1e-4', _limits), ('causes', 'attention=.95', 'attention=.8', _limits),
    ('causes', 'input=20.', 'input=50.', _limits), ('causes', 'columns=1e3', 'columns=1e2', _limits)]


# the tests of a module whose name no file has, or that are in several files
also = dict(evidence=['evidence', 'limits', 'layers'], causes=['causes', 'limits'], ailments=['causes'])
# what kills processes, counts seconds, or takes minutes
left_out = dict(lab='not (survives or killed or no_epoch_but or add_up or cluster or workers)', evidence='not (ten_thousand or work_grows or leave_memory or at_start)',
                cli='not (interrupt_then or asked_to_end or as_many_trials)')


def all_formulas():
    "Whether each wrong formula is noticed by the test that is to notice it"
    import_slow('checks')
    alive = []
    for module, right, wrong, test in formulas:
        source, tests = file_of(module).read_text(), [root/'tests'/f'test_{test}']
        if right not in source: sys.exit(f'{module} has no {right!r}')
        if not run_tests(module, source.replace(right, wrong), tests, 3600): alive.append(f'survived: {module}: {right} -> {wrong}')
        print(f'{module}: {wrong}', flush=True)
    print(*alive, f'{len(formulas) - len(alive)} of {len(formulas)} wrong formulas noticed', sep='\n')
    if not alive and given.note: note('formulas', 'python tests/mutate.py formulas --note', count=len(formulas), noticed=len(formulas))
    return 1 if alive else 0


def note(*args, **kwargs):
    "Add a line to the records of the page on trust"
    sys.path.insert(0, str(root/'benchmarks'))
    import trust
    trust.note(*args, **kwargs)


def apart_from(module):
    "The modules that do not import this one, nor one that does"
    every = {path.stem: path.read_text() for path in (root/'resnotes').glob('[a-z]*.py')}
    named = {name: {n for n in every if re.search(rf'import resnotes\.{n}\b|from resnotes\.{n} |from \.{n} |from (resnotes|\.) import .*\b{n}\b', text)}
             for name, text in every.items()}
    above, more = set(), {module}
    while more > above: above, more = more, more | {name for name, used in named.items() if used & more}
    return set(every) - above


def import_slow(module):
    "Once, for all mutants"
    import fastai.learner, hypothesis.strategies, matplotlib.pyplot, nbdev.test, pandas, scipy.stats, torch, xdist
    with contextlib.redirect_stdout(io.StringIO()): pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', root/'tests'/'test_workflows.py'])
    for name in apart_from(module): importlib.import_module(f'resnotes.{name}')
    gc.collect(), gc.freeze()   # else each fork copies all that the collector touches


def first_difference(before, after):
    "The line that a mutant changed, as it was and as it is"
    old, new = next(((a, b) for a, b in zip(before.splitlines(), after.splitlines()) if a != b), ('', ''))
    return old.strip(), new.strip()


class Chapter:
    "The chapter of a module as one more test, run only when it is asked"
    def __init__(self, module, source, folder): self.module, self.source, self.path, self.seconds = module, source, folder/'chapter.ipynb', None

    def notices(self, text):
        if self.seconds is None:
            began = time.monotonic()
            short = json.loads((root/'docs'/'times.json').read_text()).get(self.module, 99) <= 20
            there = short and write_chapter(self.module, self.path) and not run_chapter(self.module, self.source, self.path, 3600)
            self.seconds = 10 + round(3*(time.monotonic() - began)) if there else 0
            print('the chapter is tried, too' if there else 'no chapter that is short and runs', flush=True)
        return bool(self.seconds and run_chapter(self.module, text, self.path, self.seconds))


class Killed:
    "What was noticed of a module as it is: a mutant that died is not tried again, unless asked to"
    def __init__(self, module, source, fresh):
        self.path = root/'_runs'/'mutants'/f'{module}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.json'
        self.by = json.loads(self.path.read_text()) if self.path.exists() and not fresh else {}

    def add(self, name, by):
        self.by[name] = by
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.by))


class Tests:
    "The tests of a module as it is, run when the first mutant asks for them"
    def __init__(self, module, source, files): self.module, self.source, self.files, self.noted = module, source, files, None

    def run(self):
        import_slow(self.module)
        out = Path(tempfile.mkdtemp())/'noted.json'
        if run_tests(self.module, self.source, self.files, 3600, Note(file_of(self.module), out, given.slow)): sys.exit(f'the tests of {self.module} fail as it is')
        if not run_tests(self.module, 'raise ImportError', self.files, 3600): sys.exit(f'the tests of {self.module} do not notice when it is not there')
        self.noted = json.loads(out.read_text())
        taken = [seconds for seconds, _ in self.noted.values()]
        self.seconds = 10 + round(3*sum(s for s in taken if s <= given.slow))
        print(f'{len(taken)} tests in {sum(taken):.0f} s', flush=True)

    def notice(self, text, lines, around):
        if self.noted is None: self.run()
        return bool(run_tests(self.module, text, self.files, self.seconds, Order(self.noted, lines, around, given.slow)))


def main(module, files):
    source = file_of(module).read_text()
    tests, chapter, killed = Tests(module, source, files), Chapter(module, source, Path(tempfile.mkdtemp())), Killed(module, source, given.fresh)
    every, before = list(places(source)), ast.unparse(ast.parse(source))
    if given.lines: chosen = [p for p in every if p[2] in given.lines]
    else: chosen = random.Random(given.seed).sample(every, min(given.n, len(every)))
    reasons = {(m['module'], m['was'], m['becomes']) for m in tomllib.loads((root/'tests'/'mutants.toml').read_text())['explained']}
    fates = dict(by_tests=0, by_chapter=0, explained=0, alive=0)
    for i, k, line, lines, around in chosen:
        text, name = mutant(source, i, k), f'{i} {k}'
        old, new = first_difference(before, text)
        if name in killed.by: fate = killed.by[name]
        elif (module, old, new) in reasons: fate = 'explained'
        elif tests.notice(text, lines, around): fate = 'by_tests'
        else: fate = 'by_chapter' if chapter.notices(text) else 'alive'
        if fate.startswith('by'): killed.add(name, fate)
        fates[fate] += 1
        if fate == 'alive' or given.lines: print(f'{fate}, line {line}:\n  - {old}\n  + {new}', flush=True)
    dead = fates['by_tests'] + fates['by_chapter']
    if given.note:
        slow = '' if given.slow == 3 else f' --slow {given.slow:g}'
        note(f'mutants of {module}', f'python tests/mutate.py {module}{slow} --note', count=len(chosen), noticed=dead, **fates, possible=len(every), seed=given.seed)
    print(f'{module}: {dead} of {len(chosen)} mutants killed, {fates} (of {len(every)} possible, seed {given.seed})')
    return 0 if dead >= .95*(len(chosen) - fates['explained']) else 1


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('module', help='such as stats; or formulas, for the list of wrong formulas above')
    parser.add_argument('-n', type=int, default=40, help='mutants, drawn at random')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--tests', nargs='*', help='test files; tests/test_MODULE.py when not given, and some others (`also`)')
    parser.add_argument('--slow', type=float, default=3, help='tests that take more seconds are left out')
    parser.add_argument('--lines', type=int, nargs='*', help='every mutant of these lines, in place of a draw')
    parser.add_argument('--fresh', action='store_true', help='try again what was killed before in the same module')
    parser.add_argument('--note', action='store_true', help='add the count to results/trust-cpu.jsonl')
    given = parser.parse_args()
    os.chdir(root)
    sys.path.insert(0, str(root))
    if given.module == 'formulas': sys.exit(all_formulas())
    default = [root/'tests'/f'test_{name}.py' for name in also.get(given.module, [given.module])]
    sys.exit(main(given.module, given.tests or default))
