"Code that reads on a page: short lines and cells, an example after every screen, no tricks, and one owner for each name."
import ast, json, re
from collections import defaultdict
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
chapters = sorted((root/'nbs').glob('*.ipynb'))
modules = [p for p in sorted((root/'resnotes').glob('*.py')) if p.stem[0] != '_']
widest, screen, longest_module = 100, 40, 515


def source(cell): return ''.join(cell['source'])
def code_cells(path): return [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
def flags(text): return {l[2:].split()[0] for l in text.splitlines() if l.startswith('#|') and l[2:].split()}
def body(text): return [l for l in text.splitlines() if l.strip() and not l.startswith('#|')]
def is_exported(text): return bool(flags(text) & {'export', 'exports', 'exporti'})


def tree_of(text):
    "The syntax tree of a cell; None where it is IPython's"
    try: return ast.parse('\n'.join(l for l in text.splitlines() if not l.lstrip().startswith(('%', '!'))))
    except SyntaxError: return None


def only_imports(text):
    tree = tree_of(text)
    return tree is not None and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body)


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_lines_are_short(path):
    long = [l for c in code_cells(path) for l in body(source(c)) if len(l) > widest]
    assert not long, '\n'.join(long)


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_exported_code_is_followed_by_examples(path):
    "No exported cell, and no run of exported cells without one that uses them, is longer than a screen"
    run = 0
    for cell in code_cells(path):
        text = source(cell)
        if is_exported(text) and not only_imports(text):
            n = len(body(text))
            assert n <= screen, f'{n} lines in one cell: {body(text)[0]}'
            run += n
            assert run <= screen, f'{run} lines without an example up to: {body(text)[0]}'
        elif not flags(text) & {'hide', 'default_exp'} and not only_imports(text): run = 0


def tricks(tree):
    "Lambdas that are bound to a name, tuples used as statements, dictionaries of comprehensions on one line"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda): yield 'a lambda with a name', node.lineno
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple): yield 'a tuple as a statement', node.lineno
        if isinstance(node, ast.Dict) and node.lineno == node.end_lineno:
            if sum(isinstance(v, (ast.DictComp, ast.ListComp)) for v in node.values) > 1:
                yield 'a dictionary of comprehensions on one line', node.lineno


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_exported_code_has_no_tricks(path):
    found = list(tricks(ast.parse(path.read_text())))
    assert not found, found


def test_the_test_for_tricks_finds_them():
    text = 'f = lambda x: x\ncheck(a), check(b)\nd = dict(a=1) | {"b": [i for i in c], "d": {i: i for i in c}}'
    assert [line for _, line in tricks(ast.parse(text))] == [1, 2, 3]


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_modules_are_no_longer_than_a_sitting(path):
    assert len(path.read_text().splitlines()) <= longest_module


def public(path):
    "Names that a module exports"
    found = re.search(r'^__all__ = (\[.*?\])', path.read_text(), re.S | re.M)
    return ast.literal_eval(found[1]) if found else []


def test_every_public_name_has_one_owner():
    "A link from a name leads to one place; addresses on a page do not tell capitals from small letters"
    owners = defaultdict(list)
    for path in modules:
        for name in public(path): owners[name.lower()].append(f'{path.stem}.{name}')
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_nothing_private_crosses_modules(path):
    crossed = [a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level
               for a in n.names if a.name.startswith('_')]
    assert crossed == []


def imported_modules(text):
    "Modules of this library that a cell imports, wherever it does"
    found = re.findall(r'^\s*from resnotes\.(\w+) import', text, re.M) + re.findall(r'^\s*import resnotes\.(\w+)', text, re.M)
    for names in re.findall(r'^\s*from resnotes import (.+)', text, re.M): found += re.findall(r'\w+', names)
    return found


@pytest.mark.parametrize('path', [p for p in chapters if p.stem[0].isdigit()], ids=lambda p: p.stem)
def test_no_chapter_imports_a_later_one(path):
    "Appendices may be imported everywhere, and so may the ledger, which judges what a chapter found"
    number = {p.stem.split('_', 1)[1]: int(p.stem[:2]) for p in chapters if p.stem[0].isdigit()}
    here = int(path.stem[:2])
    if here >= 90: return
    names = {name for c in code_cells(path) for name in imported_modules(source(c)) if name in number}
    assert {n for n in names - {'ledger'} if number[n] < 90 and number[n] > here} == set()


def top_level(tree):
    "Names that a cell reads, and that it binds, when it is run: not in the bodies of its functions"
    read, bound, todo = set(), set(), list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name): (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): bound.add(node.name)
        if isinstance(node, (ast.Import, ast.ImportFrom)): bound |= {(a.asname or a.name).split('.')[0] for a in node.names}
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)): todo += ast.iter_child_nodes(node)
    return read, bound


def read_but_not_run(cells):
    """Names that cells read where the site is made, bound in cells that are not run there.

    nbdev runs cells that export, and whole cells in which something is imported, for the signatures on the page
    (none where nothing is exported).
    """
    run, left, cells = set(), set(), list(cells)
    if not any(map(is_exported, cells)): return
    for text in cells:
        tree = tree_of(text)
        if tree is None or 'eval:' in flags(text): continue
        read, bound = top_level(tree)
        imports = any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree))
        if not is_exported(text) and not imports: left |= bound
        else:
            yield from sorted(read & left - run - bound)
            run |= bound


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_cells_that_import_use_nothing_of_cells_that_do_not(path):
    assert list(read_but_not_run(source(c) for c in code_cells(path))) == []


def test_the_test_for_names_finds_them():
    cells = ['#| export\ndef f(): return later', 'a = f()', 'import math\nb = a', 'b', 'import re\nb', 'def a(): pass']
    assert list(read_but_not_run(cells)) == ['a']
