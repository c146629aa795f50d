"""Renders the book into _site/ from the chapters and the outputs stored in them.

Runs no chapter, and needs neither Quarto nor a network. nbdev prepares the notebooks as it does for Quarto, `glue` says the rest in
MyST-NB's words, and Sphinx writes the pages; a warning, such as a link that leads nowhere, is an error. What was rendered stays in
build/site, and is not rendered again as long as nothing that it is made of has changed."""
import argparse, hashlib, os, shutil, sys, time, warnings
from importlib.metadata import version
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from sphinx.cmd.build import main as sphinx_build

from glue import stage_all

root = Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('out', nargs='?', default=root/'_site', type=Path, help='folder to write (default: _site)')

def made_of():
    "A digest of all that the site depends on"
    patterns = 'docs/**/*', 'resnotes/*.py', '*.toml', '*.yml', 'settings.ini', 'nbs/*.ipynb', 'nbs/images/*'
    files = [p for pattern in patterns for p in sorted(root.glob(pattern)) if p.is_file() and '__pycache__' not in p.parts]
    parts = [f'{p.relative_to(root)}'.encode() + p.read_bytes() for p in files]
    parts += [version(name).encode() for name in ('nbdev', 'sphinx', 'myst-nb', 'sphinx-book-theme')]
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()

def render(book, cache):
    "Write all pages to a folder"
    shutil.rmtree(cache, ignore_errors=True)
    (cache/'src').mkdir(parents=True)
    proc = proc_nbs('nbs', force=True, n_workers=0)   # by relative path: below a hidden folder, full ones would be passed over
    stage_all(book, proc, cache/'src', get_config().doc_url)
    options = ['-b', 'html', '-W', '-q', '-E', '-c', 'docs', '-d', cache/'doctrees', '-D', f"html_title={book['title']}"]
    if sphinx_build([*map(str, options), str(cache/'src'), str(cache/'html')]): sys.exit('The site has errors; the warnings above name them.')

def main():
    out,start = parser.parse_args().out.resolve(),time.time()
    os.chdir(root)
    warnings.filterwarnings('ignore', message='Found cells containing imports')  # a chapter's import cell also sets the figure style
    book = yaml.safe_load(Path('_quarto.yml').read_text(encoding='utf-8'))['book']
    cache, now = root/'build'/'site', made_of()
    if not (cache/'made_of').exists() or (cache/'made_of').read_text() != now:
        render(book, cache)
        (cache/'made_of').write_text(now)
    if (out/'searchindex.js').exists(): shutil.rmtree(out)  # an earlier site, which may hold pages that are no more
    shutil.copytree(cache/'html', out, dirs_exist_ok=True)
    print(f'The site is in {out} ({time.time()-start:.0f} s). Open {out/"index.html"}, or run: {sys.executable} -m http.server -d {out}')

if __name__ == '__main__':
    main()
    sys.stdout.flush()
    os._exit(0)   # nbdev has left a shell for each chapter, and each would go through all that Sphinx holds before it ends: half a minute
