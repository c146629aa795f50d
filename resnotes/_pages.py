"""What nbdev does to a notebook for its page besides the usual; `doc_procs` in pyproject.toml names it, so both site engines have it.

It stands in the package because nbdev imports it by name, and only what is installed can be imported."""
import json, re
from base64 import b64decode
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image
from bs4 import BeautifulSoup
from fastcore.nbio import mk_cell
from nbdev.config import get_config
from nbdev.process import Processor

class colab_link(Processor):
    "Puts a link that opens the notebook on Colab under the title of each page that shows code"
    def begin(self):
        cfg,nb = get_config(),self.nb
        if not any(c.cell_type == 'code' for c in nb.cells): return
        path = f'{cfg.user}/{cfg.repo}/blob/{cfg.branch}/{cfg.nbs_path.name}/{Path(nb.path_).name}'
        nb.cells.insert(1, mk_cell(f'[Open in Colab](https://colab.research.google.com/github/{path})', 'markdown'))

class show_source(Processor):
    "Puts the entries of an `exports` cell above it and leaves to the code what the code says: signature and docstring"
    def begin(self):
        entries = {c.source.rpartition('show_doc(')[2].rstrip(')'): c for c in self.nb.cells if getattr(c, 'has_sd', False)}
        for cell in [c for c in self.nb.cells if 'exports' in getattr(c, 'directives_', {})]:
            own = [entries[name] for name in re.findall(r'^(?:class|def) (\w+)', cell.source, re.M) if name in entries]
            for e in own: e.outputs[0]['data']['text/markdown'] = ''.join(e.outputs[0]['data']['text/markdown']).partition('```')[0]
            rest = [c for c in self.nb.cells if not any(c is e for e in own)]
            i = next(i for i, c in enumerate(rest) if c is cell)
            self.nb.cells = rest[:i] + own + rest[i:]

class front(Processor):
    """Says title and subtitle in the words of a Quarto book, which hides a chapter's description and would count the title page
    as its first chapter; that page has its subtitle from the book"""
    def begin(self):
        said = getattr(self.nb, 'frontmatter_', {})   # nbdev has put it into the first cell
        if not said: return
        if Path(self.nb.path_).stem == 'index': said |= {'title': said['title'] + ' {.unnumbered}', 'hide-description': True}
        elif 'description' in said: said['subtitle'] = said['description']
        lines = [f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in said.items()]
        self.nb.cells[0].source = '\n'.join(['---', *lines, '---', ''])

def quote_text(cell):
    "Makes any sentence a caption or a text alternative: unquoted, one with a colon or a hash would be other YAML, or none"
    if cell.cell_type != 'code': return
    quoted = lambda m: f'#| {m[1]}: {json.dumps(m[2], ensure_ascii=False)}'
    cell.source = re.sub(r'^#\| (fig-alt|fig-cap|tbl-cap): ([^"\'].*)$', quoted, cell.source, flags=re.M)

def name_index(table):
    "pandas writes the names of the index into a row of their own below the names of the columns: put them where no name stands"
    if table.thead is None or len(rows := table.thead.find_all('tr', recursive=False)) != 2: return
    columns, index = [row.find_all(['th', 'td'], recursive=False) for row in rows]
    n = sum(bool(th.get_text()) for th in index)
    alike = len(columns) == len(index) and not any(th.get('colspan') for th in columns)
    if alike and all(th.get_text() for th in index[:n]) and not any(th.get_text() for th in columns[:n]):
        for th, name in zip(columns, index[:n]): th.string = name.get_text()
        rows[1].decompose()

def hide_count(table):
    "Leaves out an index without a name that counts the rows from 0: it says nothing"
    rows = table.find_all('tr')
    first, *labels = [row.find(['th', 'td']) for row in rows]
    counted = [str(i) for i in range(len(labels))]
    if first.get_text() or [th.name + th.get_text() for th in labels] != ['th' + i for i in counted]: return
    for th in (first, *labels): th.decompose()

def plain_html(html):
    "HTML of an output without pandas' style sheet, its index named and no header empty: what heads nothing is a cell"
    soup = BeautifulSoup(html, 'html.parser')
    for style in soup.find_all('style'): style.decompose()
    for table in soup.find_all('table'):
        name_index(table)
        hide_count(table)
    for th in soup.find_all('th'):
        if not th.get_text(strip=True): th.name = 'td'
        for part in list(th.find_all(string=re.compile('_.'))):   # a long name may break behind its underscores
            part.replace_with(BeautifulSoup(re.sub('_(?=.)', '_<wbr>', escape(part)), 'html.parser'))
    return re.sub(r'\n\s*(?=\n)', '', str(soup)).strip()

def plain_tables(cell):
    "Hands tables on as Markdown that holds HTML: for an output of HTML, Quarto loads two libraries of scripts from another host"
    if cell.cell_type != 'code': return
    for out in cell.get('outputs', []):
        html = out.get('data', {}).pop('text/html', None)
        if html: out['data']['text/markdown'] = f"```{{=html}}\n{plain_html(''.join(html))}\n```\n"

def is_photo(png):
    "Whether a picture shows images rather than lines on a white plate: at night it is dimmed, not inverted"
    shades = Image.open(BytesIO(b64decode(''.join(png)))).convert('L').histogram()
    return sum(shades[245:]) < .5*sum(shades)

def mark_photo(cell):
    "Gives cells that show images a class of their own"
    pngs = [o['data']['image/png'] for o in cell.get('outputs', []) if 'image/png' in o.get('data', {})]
    if pngs and is_photo(pngs[0]): cell.source = f'#| classes: photo\n{cell.source}'
