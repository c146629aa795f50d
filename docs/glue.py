"""From a notebook that nbdev has prepared for Quarto to one for MyST-NB.

A chapter is portable Markdown, so little is left to translate: titles, cell options, text alternatives, API entries, links between
chapters, and the table of contents, which stands in _quarto.yml."""
import re
from base64 import b64decode
from io import BytesIO
from shutil import copytree

import yaml
from PIL import Image
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.config import nbpath2html

def pandoc_id(title):
    "The anchor that Quarto gives a heading, so that a link which works on one site works on the other"
    return re.sub(r'^[^a-z]+', '', re.sub(r'[^\w\-. ]', '', title.lower()).replace(' ', '-')) or 'section'

def chapters(book):
    "Every notebook that `_quarto.yml` names, in order"
    return [f for e in book['chapters'] + book['appendices'] for f in (e['chapters'] if isinstance(e, dict) else [e])]

def toc(book, written):
    "The table of contents of the title page, which the sidebar shows: parts with numbered chapters, then the appendices"
    parts = [(e['part'], ':numbered: 1', e['chapters']) for e in book['chapters'] if isinstance(e, dict)]
    for caption, numbered, files in [*parts, ('Appendices', '', book['appendices'])]:
        pages = [nbpath2html(f).stem for f in files if f in written]
        if pages: yield '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', numbered, '', *pages, '```'])

def source(cell):
    "The cell's code and, as a dict, the `#|` options above it"
    lines = cell.source.splitlines()
    n = next((i for i, l in enumerate(lines) if not l.startswith('#|')), len(lines))
    return '\n'.join(lines[n:]).strip('\n'), yaml.safe_load('\n'.join(l[2:].strip() for l in lines[:n])) or {}

def is_api(cell):
    "Whether this is an entry that nbdev added with `show_doc`"
    return cell.cell_type == 'code' and cell.outputs and re.search(r'^show_doc\(', cell.source, re.M)

def api(cell):
    "The entry that `show_doc` wrote, as Markdown"
    md = ''.join(cell.outputs[0]['data']['text/markdown']).removeprefix('---\n').replace('__main__.', '')
    return re.sub(r'\[source\]\((.*)\)\{.*\}\s+(### .*)', r'\2\n\n[source](\1){.source}', md)

def is_photo(cell):
    "Whether a picture shows images rather than lines on a white plate: at night it is dimmed, not inverted"
    png = next((o['data']['image/png'] for o in cell.get('outputs', []) if 'image/png' in o.get('data', {})), None)
    if png is None: return False
    shades = Image.open(BytesIO(b64decode(''.join(png)))).convert('L').histogram()
    return sum(shades[245:]) < .5*sum(shades)

def code(cell):
    "Say the cell options of Quarto in the words of MyST-NB"
    cell.source, o = source(cell)
    wishes = {'remove-input': o.get('echo') is False, 'remove-output': o.get('output') is False,
              'remove-cell': o.get('include') is False, 'hide-input': o.get('code-fold') is True}
    cell.metadata['tags'] = [tag for tag, wanted in wishes.items() if wanted]
    for data in (out.get('data', {}) for out in cell.get('outputs', [])):   # pandas leaves headers empty: those head nothing
        if html := data.get('text/html'): data['text/html'] = re.sub(r'<th( class="[^"]*")?></th>', '<td></td>', ''.join(html))
    if alt := o.get('fig-alt'): cell.metadata['mystnb'] = {'image': {'alt': alt} | ({'classes': 'photo'} if is_photo(cell) else {})}
    return cell

def stage(nb, link):
    "Turn a notebook that nbdev has prepared into one for MyST-NB, with each Markdown text passed through `link`"
    front = yaml.safe_load(nb.cells[0].source.strip().strip('-'))
    title = f"# {front['title']}\n\n" + ('{.subtitle}\n' + front['description'] if 'description' in front else '')
    cells = [mk_cell(title, 'markdown')]
    for c in nb.cells[1:]:
        if is_api(c): c = mk_cell(api(c), 'markdown')
        if c.cell_type == 'code': c = code(c)
        if c.cell_type == 'markdown': c.source = link(c.source)
        for o in c.get('outputs', []):
            md = o.get('data', {}).get('text/markdown')
            if md: o['data']['text/markdown'] = link(''.join(md))
        if c.source or c.get('outputs'): cells.append(c)
    nb.cells = cells
    return nb

def stage_all(book, proc, dst, site):
    "Write the chapters of `book` found in `proc`, and the pictures they link, to `dst` for Sphinx; `site` is the published address"
    names = chapters(book)
    nbs = {f: read_nb(proc/f) for f in names if (proc/f).exists()}
    if (proc/'images').exists(): copytree(proc/'images', dst/'images')
    for f in names:
        if f not in nbs: print(f'not written yet, left out: {f}')
    pages = {f: nbpath2html(f).with_suffix('.ipynb').name for f in names}
    entries = {(pages[f], name.lower()) for f, nb in nbs.items() for c in nb.cells if is_api(c)
               for name in re.findall(r'^### (\S+)$', api(c), re.M)}

    def entry(m):
        "nbdev links a name to its entry on the published site; the same entry is on these pages, unless it has none"
        page = f'{m[1]}.ipynb'
        return f'{page}#{m[2]}' if (page, m[2]) in entries else page
    def link(md):
        for f, page in pages.items(): md = md.replace(f']({f}', f']({page}')
        return re.sub(re.escape(site) + r'(\w+)\.html#([\w.]+)', entry, md)

    for f, nb in nbs.items():
        nb = stage(nb, link)
        if f == 'index.ipynb': nb.cells.append(mk_cell('\n\n'.join(toc(book, nbs)), 'markdown'))
        write_nb(nb, dst/pages[f])
