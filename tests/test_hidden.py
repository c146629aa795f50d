"A small book, built as the large one is: in a checkout below a hidden folder, and again after a change"
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]

def page(path, title, text='One line'):
    cells = [dict(cell_type='markdown', id=f'{path.stem}{i}', metadata={}, source=[source])
             for i, source in enumerate((f'# {title}\n\n> One sentence', text))]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))

def build(book):
    return subprocess.run([sys.executable, book/'docs'/'build.py'], cwd=book.parent, capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(root)})

@pytest.fixture
def book(tmp_path):
    "A checkout may lie below a folder whose name begins with a dot, such as ~/.cache"
    book = tmp_path/'.cache'/'book'
    shutil.copytree(root/'docs', book/'docs')
    for name in ('pyproject.toml', 'settings.ini'): shutil.copy(root/name, book)
    for name in ('index', '01_one', '02_two'):
        (book/'nbs').mkdir(exist_ok=True)
        page(book/'nbs'/f'{name}.ipynb', name)
    (book/'_quarto.yml').write_text('book:\n  title: resnotes\n  chapters:\n    - index.ipynb\n'
                                    '    - part: Part\n      chapters: [01_one.ipynb]\n  appendices: [02_two.ipynb]\n')
    (book/'nbs'/'_quarto.yml').symlink_to(Path('..')/'_quarto.yml')
    return book

def test_a_book_is_built_and_what_did_not_change_is_not_rendered_again(book):
    def rendered(): return {p.name: (p.stat().st_mtime_ns, p.read_text()) for p in (book/'build'/'site'/'html').glob('*.html')}
    built = build(book)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (book/'_site'/'index.html').exists() and '01_one' in (book/'_site'/'one.html').read_text()
    first = rendered()
    assert build(book).returncode == 0 and rendered() == first   # nothing is written again
    page(book/'nbs'/'02_two.ipynb', '02_two', 'Another line')
    assert build(book).returncode == 0
    second = rendered()
    assert 'Another line' in second['two.html'][1] and 'Another line' in (book/'_site'/'two.html').read_text()
    assert set(first) == set(second)
    page(book/'nbs'/'02_two.ipynb', 'Renamed', 'Another line')
    assert build(book).returncode == 0
    assert 'Renamed' in rendered()['one.html'][1]   # in its table of contents

def test_a_fault_stays_one_when_the_book_is_built_again(book):
    page(book/'nbs'/'02_two.ipynb', '02_two', '[c](05_missing.ipynb)')
    for _ in range(2):
        built = build(book)
        assert built.returncode == 1 and '05_missing.ipynb' in built.stderr

def test_a_heading_that_goes_is_missed_by_a_page_that_stays(book):
    page(book/'nbs'/'01_one.ipynb', '01_one', '[there](02_two.ipynb#place)')
    page(book/'nbs'/'02_two.ipynb', '02_two', '## Place')
    built = build(book)
    assert built.returncode == 0, built.stdout + built.stderr
    page(book/'nbs'/'02_two.ipynb', '02_two', '## Elsewhere')
    built = build(book)
    assert built.returncode == 1 and 'place' in built.stderr
