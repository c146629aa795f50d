"""What nbdev does to a notebook for its page besides the usual; `doc_procs` in pyproject.toml names it, so both site engines have it.

It stands in the package because nbdev imports it by name, and only what is installed can be imported."""
import json, re
from pathlib import Path

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

def quote_alt(cell):
    "Makes any sentence a text alternative: unquoted, one with a colon or a hash would be other YAML, or none"
    if cell.cell_type != 'code': return
    cell.source = re.sub(r'^#\| fig-alt: ([^"\'].*)$', lambda m: f'#| fig-alt: {json.dumps(m[1], ensure_ascii=False)}', cell.source, flags=re.M)
