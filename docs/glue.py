"""From a notebook that nbdev has prepared for Quarto to one for MyST-NB.

A chapter is portable Markdown, so little is left to translate: titles, cell options, captions, API entries, links between
chapters, and the table of contents, which stands in _quarto.yml."""
import re
from html import escape
from itertools import count
from shutil import copytree

import yaml
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.config import nbpath2html

def pandoc_id(title):
    "The anchor that Quarto gives a heading, so that a link which works on one site works on the other"
    return re.sub(r'^[^a-z]+', '', re.sub(r'[^\w\-. ]', '', title.lower()).replace(' ', '-')) or 'section'

def chapters(book):
    "Every notebook that `_quarto.yml` names, in order"
    return [f for e in book['chapters'] + book['appendices'] for f in (e['chapters'] if isinstance(e, dict) else [e])]

def numbers(book):
    "The number of each chapter and the letter of each appendix, as Quarto gives them; the title page has none"
    parts = [f for e in book['chapters'] if isinstance(e, dict) for f in e['chapters']]
    return {f: str(i) for i, f in enumerate(parts, 1)} | {f: chr(ord('A') + i) for i, f in enumerate(book['appendices'])}

def toc(book, titles):
    "The table of contents of the title page, which the sidebar shows: parts with numbered chapters, then lettered appendices"
    letters = numbers(book)
    parts = [(e['part'], ':numbered: 1', e['chapters']) for e in book['chapters'] if isinstance(e, dict)]
    for caption, numbered, files in [*parts, ('Appendices', '', book['appendices'])]:
        pages = {f: nbpath2html(f).stem for f in files if f in titles}
        lines = pages.values() if numbered else [f'{letters[f]}. {titles[f]} <{page}>' for f, page in pages.items()]
        if pages: yield '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', numbered, '', *lines, '```'])

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
    md = re.sub(r'^### .*__.*', lambda m: m[0].replace('_', r'\_'), md, flags=re.M)   # double underscores would set a name in bold
    return re.sub(r'\[source\]\((.*)\)\{.*\}\s+(### .*)', r'\2\n\n[source](\1){.source}', md)

def picture(o, number):
    "What MyST-NB is told of a cell's picture: its text alternative, and its caption under the number that Quarto gives it"
    image = {'alt': o['fig-alt']} | ({'classes': o['classes']} if 'classes' in o else {})
    if 'fig-cap' not in o: return {'image': image}
    return {'image': image, 'figure': {'name': o['label'], 'caption': f'Figure {number}: {o["fig-cap"]}'}}

def caption_table(data, label, caption):
    "Put the caption of a table into it: an element of its HTML, or MyST's directive around its rows"
    if 'text/html' in data:
        head = lambda m: f'<table{m[1]} id="{label}"><caption>{escape(caption, quote=False)}</caption>'
        data['text/html'] = re.sub('<table([^>]*)>', head, data['text/html'], count=1)
    else: data['text/markdown'] = f'```{{table}} {caption}\n:name: {label}\n\n{"".join(data["text/markdown"])}\n```'

def caption_tables(md):
    "Pandoc takes a paragraph `Table: …` before a table for its caption; MyST wants a directive around the table"
    return re.sub(r'^Table: (.+)\n\n((?:\|.*(?:\n|$))+)', r'```{table} \1\n\n\2\n```\n', md, flags=re.M)

def code(cell, figures, tables):
    "Say the cell options of Quarto in the words of MyST-NB; `figures` and `tables` yield their numbers"
    cell.source, o = source(cell)
    wishes = {'remove-input': o.get('echo') is False, 'remove-output': o.get('output') is False,
              'remove-cell': o.get('include') is False, 'hide-input': o.get('code-fold') is True}
    cell.metadata['tags'] = [tag for tag, wanted in wishes.items() if wanted]
    for data in (out.get('data', {}) for out in cell.get('outputs', [])):
        html = re.fullmatch(r'```{=html}\n(.*)\n```\n', ''.join(data.get('text/markdown', '')), re.S)   # see resnotes._pages
        if html: data['text/html'] = data.pop('text/markdown') and html[1]
    drawn = any('image/png' in out.get('data', {}) for out in cell.get('outputs', []))
    if drawn and 'fig-alt' in o: cell.metadata['mystnb'] = picture(o, next(figures))
    if 'tbl-cap' in o:
        shown = next(data for out in cell.outputs if (data := out.get('data', {})).keys() & {'text/html', 'text/markdown'})
        caption_table(shown, o['label'], f'Table {next(tables)}: {o["tbl-cap"]}')
    return cell

def front(nb):
    "Title and, if there is one, `description` of a notebook that nbdev has prepared"
    found = yaml.safe_load(nb.cells[0].source.strip().strip('-'))
    return found | {'title': found['title'].removesuffix(' {.unnumbered}')}

def stage(nb, link, number):
    "Turn a notebook that nbdev has prepared into one for MyST-NB, with each Markdown text passed through `link`"
    head = front(nb)
    figures,tables = [(f'{number}.{i}' for i in count(1)) for _ in range(2)]
    title = f"# {head['title']}\n\n" + ('{.subtitle}\n' + head['description'] if 'description' in head else '')
    cells = [mk_cell(title, 'markdown')]
    for c in nb.cells[1:]:
        if is_api(c): c = mk_cell(api(c), 'markdown')
        if c.cell_type == 'code': c = code(c, figures, tables)
        if c.cell_type == 'markdown': c.source = caption_tables(link(c.source))
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
               for name in re.findall(r'^### (\S+)$', api(c).replace('\\', ''), re.M)}

    def entry(m):
        "nbdev links a name to its entry on the published site; the same entry is on these pages, unless it has none"
        page = f'{m[1]}.ipynb'
        return f'{page}#{m[2]}' if (page, m[2]) in entries else page
    def link(md):
        for f, page in pages.items(): md = md.replace(f']({f}', f']({page}')
        return re.sub(re.escape(site) + r'(\w+)\.html#([\w.]+)', entry, md)

    titles = {f: front(nb)['title'] for f, nb in nbs.items()}
    for f, nb in nbs.items():
        nb = stage(nb, link, numbers(book).get(f))
        if f == 'index.ipynb': nb.cells.append(mk_cell('\n\n'.join(toc(book, titles)), 'markdown'))
        write_nb(nb, dst/pages[f])
