"""Do the tests notice when the code is wrong? `python tests/mutate.py MODULE` changes one place of a module at a time and runs its tests.

A mutant is the module with one operator, number, comparison or truth value changed. One process imports what is slow; each mutant
lives in a fork of it, so it costs its tests and no import. A mutant is killed when a test fails or the tests take too long. Survivors
are printed as they read, to be killed by a new assertion or explained."""
import argparse, ast, copy, importlib.abc, importlib.util, os, random, signal, sys, time
from pathlib import Path

root = Path(__file__).resolve().parents[1]
swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
         ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
         ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And}


def changes(node):
    "Every way to change one node: (what is set, its new value)"
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in swaps: yield 'op', swaps[type(node.op)]()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub): yield 'op', ast.UAdd()
    if isinstance(node, ast.Compare) and len(node.ops) == 1: yield 'ops', [swaps[type(node.ops[0])]()]
    if isinstance(node, ast.IfExp): yield 'test', ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.If): yield 'test', ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Constant) and type(node.value) is bool: yield 'value', not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)): yield 'value', node.value + 1 if node.value < 2 else node.value*2


def mutants(source):
    "(line, source) of every mutant; annotations and docstrings are left alone"
    tree = ast.parse(source)
    left_alone = {id(n) for f in ast.walk(tree) for a in (getattr(f, 'annotation', None), getattr(f, 'returns', None)) if a for n in ast.walk(a)}
    places = [(i, n) for i, n in enumerate(ast.walk(tree)) if id(n) not in left_alone]
    for i, node in places:
        for k, _ in enumerate(changes(node)):
            new = copy.deepcopy(tree)
            target = next(n for j, n in enumerate(ast.walk(new)) if j == i)
            name, value = list(changes(target))[k]
            setattr(target, name, value)
            yield node.lineno if hasattr(node, 'lineno') else 0, ast.unparse(ast.fix_missing_locations(new))


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Imports one module from a source that is given"
    def __init__(self, name, path, source): self.name, self.path, self.source = name, path, source
    def find_spec(self, name, path, target=None):
        if name == self.name: return importlib.util.spec_from_file_location(name, self.path, loader=self)
    def create_module(self, spec): return None
    def exec_module(self, module): exec(compile(self.source, str(self.path), 'exec'), module.__dict__)


def run_tests(module, source, tests, seconds):
    "Exit code of the tests with this source, in a fork; -1 when they take too long"
    pid = os.fork()
    if pid:
        try: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGKILL)
            raise
    code = 1
    try:
        signal.alarm(seconds)   # its default action ends the process
        import resnotes   # its own finder first, so that ours stands before it
        sys.meta_path.insert(0, Instead(f'resnotes.{module}', root/'resnotes'/f'{module}.py', source))
        with open(os.devnull, 'w') as null:
            os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
            import pytest
            code = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *map(str, tests)])
    finally: os._exit(code)


# (module, what is right, what is wrong, the test that notices): a factor, an exponent, an argument ignored, a limit
_arguments, _relu = 'init.py::test_every_argument_of_every_filler_counts', 'moments.py::test_relu_has_the_first_order_of_the_arc_cosine_kernel'
_grow, _limits = 'evidence.py::test_growth_and_gradients_are_judged_at_their_limits', 'limits.py::test_a_complaint_begins_at_its_limit'
formulas = [
    ('moments', 'Moments(self.second/2, few', 'Moments(self.second/4, few', 'moments.py::test_relu_of_white_noise_has_the_variance_that_a_norm_sees'),
    ('moments', 'self.second.sqrt()[None]/math.sqrt(2*math.pi)', '0*self.second.sqrt()[None]', _relu),
    ('moments', 'torch.cat([fresh, self.patterns/2])', 'torch.cat([fresh, self.patterns/4])', _relu),
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


def all_formulas():
    "Whether each wrong formula is noticed by the test that is to notice it"
    import_slow()
    alive = []
    for module, right, wrong, test in formulas:
        source, tests = (root/'resnotes'/f'{module}.py').read_text(), [root/'tests'/f'test_{test}']
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


def import_slow():
    "Once, for all mutants"
    import fastai.learner, matplotlib.pyplot, pandas, pytest, scipy.stats, torch

def main(module, n, seed, tests):
    source = (root/'resnotes'/f'{module}.py').read_text()
    import_slow()
    began = time.monotonic()
    if run_tests(module, source, tests, 3600): sys.exit(f'the tests of {module} fail as it is')
    took = time.monotonic() - began
    if not run_tests(module, 'raise ImportError', tests, 3600): sys.exit(f'the tests of {module} do not notice when it is not there')
    seconds = 10 + round(3*took)
    every = list(mutants(source))
    chosen = random.Random(seed).sample(every, min(n, len(every)))
    before, killed = ast.unparse(ast.parse(source)).splitlines(), 0
    for line, text in chosen:
        dead = run_tests(module, text, tests, seconds) != 0
        killed += dead
        if not dead:
            old, new = next(((a, b) for a, b in zip(before, text.splitlines()) if a != b), ('', ''))
            print(f'survived, line {line}:\n  - {old.strip()}\n  + {new.strip()}', flush=True)
    if given.note: note(f'mutants of {module}', f'python tests/mutate.py {module} --note', count=len(chosen), noticed=killed, possible=len(every))
    print(f'{module}: {killed} of {len(chosen)} mutants killed (of {len(every)} possible, seed {seed})')
    return 0 if killed >= .95*len(chosen) else 1


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('module', help='such as stats; or formulas, for the list of wrong formulas above')
    parser.add_argument('-n', type=int, default=40, help='mutants, drawn at random')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--tests', nargs='*', help='test files; tests/test_MODULE.py when not given')
    parser.add_argument('--note', action='store_true', help='add the count to results/trust-cpu.jsonl')
    given = parser.parse_args()
    os.chdir(root)
    sys.path.insert(0, str(root))
    if given.module == 'formulas': sys.exit(all_formulas())
    sys.exit(main(given.module, given.n, given.seed, given.tests or [root/'tests'/f'test_{given.module}.py']))
