"A checkout may lie below a folder whose name begins with a dot, such as ~/.cache: the site is built there as elsewhere"
import json, os, shutil, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def page(path, title):
    cell = dict(cell_type='markdown', id=path.stem, metadata={}, source=[f'# {title}\n', '\n', '> One sentence'])
    path.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))

def test_a_book_below_a_hidden_folder(tmp_path):
    book = tmp_path/'.cache'/'book'
    shutil.copytree(root/'docs', book/'docs')
    for name in ('pyproject.toml', 'settings.ini'): shutil.copy(root/name, book)
    for name in ('index', '01_one', '02_two'):
        (book/'nbs').mkdir(exist_ok=True)
        page(book/'nbs'/f'{name}.ipynb', name)
    (book/'_quarto.yml').write_text('book:\n  title: resnotes\n  chapters:\n    - index.ipynb\n'
                                    '    - part: Part\n      chapters: [01_one.ipynb]\n  appendices: [02_two.ipynb]\n')
    (book/'nbs'/'_quarto.yml').symlink_to(Path('..')/'_quarto.yml')
    built = subprocess.run([sys.executable, book/'docs'/'build.py'], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(root)})
    assert built.returncode == 0, built.stdout + built.stderr
    assert (book/'_site'/'index.html').exists() and '01_one' in (book/'_site'/'one.html').read_text()
