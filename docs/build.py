"""Renders the book into _site/ from the chapters and the outputs stored in them.

Runs no chapter, and needs neither Quarto nor a network. nbdev prepares the notebooks as it does for Quarto, `glue` says the rest in
MyST-NB's words, and Sphinx writes the pages; a warning, such as a link that leads nowhere, is an error. What was rendered before
stays in build/site, and only the pages that changed are rendered again: all of them when anything
but the text of a chapter changed, since others show its title and link to its headings."""
import argparse, hashlib, os, shutil, sys, time, warnings
from importlib.metadata import version
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from sphinx.cmd.build import main as sphinx_build

from glue import chapters, headings, stage_all

root = Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('out', nargs='?', default=root/'_site', type=Path, help='folder to write (default: _site)')

def shared_by_all(book):
    "A digest of what every page depends on"
    files = [p for pattern in ('docs/**/*', 'resnotes/*.py', '*.toml', '*.yml', 'settings.ini', 'nbs/images/*') for p in sorted(root.glob(pattern))]
    parts = [p.read_bytes() for p in files if p.is_file() and '__pycache__' not in p.parts]
    parts += [f'{f}: {headings(root/"nbs"/f)}'.encode() for f in chapters(book)]
    parts += [version(name).encode() for name in ('nbdev', 'sphinx', 'myst-nb', 'sphinx-book-theme')]
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()

def kept_from_before(book):
    "The folder of what was rendered before, emptied if that can no longer be used; and whether it can"
    cache, now = root/'build'/'site', shared_by_all(book)
    fits = (cache/'shared').exists() and (cache/'shared').read_text() == now
    if not fits: shutil.rmtree(cache, ignore_errors=True)
    (cache/'src').mkdir(parents=True, exist_ok=True)
    (cache/'shared').unlink(missing_ok=True)   # until the site is there
    return cache, now, fits

def main():
    out,start = parser.parse_args().out.resolve(),time.time()
    os.chdir(root)
    warnings.filterwarnings('ignore', message='Found cells containing imports')  # a chapter's import cell also sets the figure style
    book = yaml.safe_load(Path('_quarto.yml').read_text(encoding='utf-8'))['book']
    cache, now, fits = kept_from_before(book)
    proc = proc_nbs('nbs', force=not fits, n_workers=0)   # by relative path: below a hidden folder, full ones would be passed over
    stage_all(book, proc, cache/'src', get_config().doc_url)
    options = ['-b', 'html', '-W', '-q', '-c', 'docs', '-d', cache/'doctrees', '-D', f"html_title={book['title']}"]
    if sphinx_build([*map(str, options), str(cache/'src'), str(cache/'html')]): sys.exit('The site has errors; the warnings above name them.')
    if (out/'searchindex.js').exists(): shutil.rmtree(out)  # an earlier site, which may hold pages that are no more
    shutil.copytree(cache/'html', out, dirs_exist_ok=True)
    (cache/'shared').write_text(now)
    print(f'The site is in {out} ({time.time()-start:.0f} s). Open {out/"index.html"}, or run: {sys.executable} -m http.server -d {out}')

if __name__ == '__main__':
    main()
    sys.stdout.flush()
    os._exit(0)   # nbdev has left a shell for each chapter, and each would go through all that Sphinx holds before it ends: half a minute
