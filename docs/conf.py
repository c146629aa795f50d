"Settings of Sphinx for docs/build.py. Everything a page needs is shipped with it: no content delivery network, no web font."
from docutils import nodes
from nbdev.config import get_config

cfg = get_config(__file__)
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
html_css_files = ['book.css']
html_favicon = 'static/favicon.svg'
html_context = {'default_mode': 'auto'}
html_copy_source = False
html_scaled_image_link = False
html_use_index = False
html_show_copyright = False
html_theme_options = dict(repository_url=cfg.git_url, use_repository_button=True, use_download_button=False, show_toc_level=2,
                          navbar_persistent=[], footer_content_items=[])

def setup(app):
    "Give each heading Quarto's anchor besides the one of Sphinx, so that a link to the one site works on the other"
    def anchor(app, tree):
        for s in tree.findall(nodes.section):
            if s.get('slug') not in [None, *s['ids']]: s['ids'].append(s['slug'])
    app.connect('doctree-read', anchor)
