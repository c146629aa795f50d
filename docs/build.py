"""Renders the book into _site/ from the chapters and the outputs stored in them.

Runs no chapter, and needs neither Quarto nor a network. nbdev prepares the notebooks as it does for Quarto, `glue` says the rest in
MyST-NB's words, and Sphinx writes the pages; a warning, such as a link that leads nowhere, is an error."""
import argparse, os, shutil, sys, time, warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from sphinx.cmd.build import main as sphinx_build

from glue import stage_all

root = Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('out', nargs='?', default=root/'_site', type=Path, help='folder to write (default: _site)')

def main():
    out,start = parser.parse_args().out.resolve(),time.time()
    os.chdir(root)
    warnings.filterwarnings('ignore', message='Found cells containing imports')  # a chapter's import cell also sets the figure style
    book = yaml.safe_load(Path('_quarto.yml').read_text(encoding='utf-8'))['book']
    proc = proc_nbs('nbs', force=True, n_workers=0)   # from here on: below a hidden folder, full paths would be passed over
    with TemporaryDirectory() as tmp:
        src = Path(tmp)/'src'
        src.mkdir()
        stage_all(book, proc, src, get_config().doc_url)
        options = ['-b', 'html', '-W', '-q', '-E', '-c', 'docs', '-d', f'{tmp}/doctrees', '-D', f"html_title={book['title']}"]
        if sphinx_build([*options, str(src), f'{tmp}/html']): sys.exit('The site has errors; the warnings above name them.')
        if (out/'searchindex.js').exists(): shutil.rmtree(out)  # an earlier site, which may hold pages that are no more
        shutil.copytree(f'{tmp}/html', out, dirs_exist_ok=True)
    print(f'The site is in {out} ({time.time()-start:.0f} s). Open {out/"index.html"}, or run: {sys.executable} -m http.server -d {out}')

if __name__ == '__main__': main()
