"Settings of Sphinx for docs/build.py. Everything a page needs is shipped with it: no content delivery network, no web font."
import re
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from nbdev.config import get_config
from sphinx import addnodes

cfg = get_config(__file__)
terms = yaml.safe_load((Path(__file__).parent/'terms.yml').read_text(encoding='utf-8'))
extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx_multitoc_numbering', 'sphinx-mathjax-offline']
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
nb_merge_streams = True
nb_code_prompt_show = 'Show the code'
nb_code_prompt_hide = 'Hide the code'
nb_ipywidgets_js = {}             # would come from a network

myst_heading_anchors = 4
myst_heading_slug_func = 'glue.pandoc_id'
myst_enable_extensions = ['dollarmath', 'attrs_inline', 'attrs_block']
myst_dmath_allow_space = False   # the rules of Pandoc
myst_dmath_allow_digits = False
suppress_warnings = ['myst.header',              # an API entry is a heading of level 3 wherever it stands
                     'misc.highlighting_failure']  # its signature need not be Python: a default may be <class 'Conv2d'>

html_theme = 'sphinx_book_theme'
html_static_path = ['static']
templates_path = ['templates']   # two small parts of the theme, mended for screen readers
html_css_files = ['book.css']
html_js_files = ['play.js']
html_favicon = 'static/favicon.svg'
html_context = {'default_mode': 'auto'}
html_copy_source = False
html_scaled_image_link = False
html_use_index = False
html_show_copyright = False
html_theme_options = dict(repository_url=cfg.git_url, use_repository_button=True, use_download_button=False, show_toc_level=2,
                          navbar_persistent=[], footer_content_items=[])

def anchor(app, tree):
    "Give each heading Quarto's anchor besides the one of Sphinx, so that a link to the one site works on the other"
    for s in tree.findall(nodes.section):
        if s.get('slug') not in [None, *s['ids']]: s['ids'].append(s['slug'])

def entry_names(tree):
    "Names of the library and the anchors of their entries: headings with a link to the source below them"
    for s in tree.findall(nodes.section):
        below = s.children[1] if len(s.children) > 1 else None
        if isinstance(below, nodes.paragraph) and any('source' in r['classes'] for r in below.findall(nodes.reference)):
            yield s.children[0].astext(), s['ids'][0]

def name_row(raw, name):
    "Give a row of the ledger the anchor that its first cell begins with: the search shows what an anchor holds"
    row = raw
    while row is not None and not isinstance(row, nodes.row): row = row.parent
    if row is None: return
    place = raw.parent.index(raw)
    del raw.parent[place:place + 2]   # the tag, and the one that closes it
    row['ids'].append(name)

def claim_names(tree):
    "Names of claims and their anchors: each verdict of a chapter is given one, the ledger's rows have theirs"
    for strong in tree.findall(nodes.strong):
        claim = re.match(r'[BTFWS]\d\d(?= )', strong.astext())
        if not claim or not isinstance(strong.parent, nodes.paragraph): continue
        name = claim[0].lower()
        if name not in strong.parent['ids'] and name not in tree.ids: strong.parent['ids'].append(name)
        yield name, name
    for raw in list(tree.findall(nodes.raw)):
        for name in re.findall(r'<a id="([btfws]\d\d)">', raw.astext()):
            name_row(raw, name)
            yield name, name

def searchable(app, tree):
    "Enter names of the library, claims and the words of terms.yml into the search, each leading to its section"
    page = app.env.current_document.docname
    ids = {i: s['ids'][0] for s in tree.findall(nodes.section) for i in s['ids']}
    words = [(word, ids.get(heading, '')) for heading, found in terms.get(f'{page}.html', {}).items() for word in found]
    found = dict.fromkeys([*words, *entry_names(tree), *claim_names(tree)])
    tree += addnodes.index(entries=[('single', word.lower(), where, 'main', None) for word, where in found])

def describe(app, page, template, context, tree):
    "Tell search engines of a page what its subtitle tells readers"
    if tree is None: return
    said = next((p.astext() for p in tree.findall(nodes.paragraph) if 'subtitle' in p['classes']), None)
    if said: context['metatags'] += f'<meta name="description" content="{escape(said)}">'

def setup(app):
    app.connect('doctree-read', anchor)
    app.connect('doctree-read', searchable)
    app.connect('html-page-context', describe)
