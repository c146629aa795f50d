"""Gives the chapters the numbers of their order in _quarto.yml, and mends every link and mention.

To insert a chapter, name it in _quarto.yml with any number (`00_new.ipynb`) and run this. Appendices keep theirs."""
import re
from pathlib import Path

import yaml

root = Path(__file__).resolve().parent.parent

def new_names():
    "Old name -> new name of every chapter whose number is not its place"
    book = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['book']
    files = [f for e in book['chapters'] if isinstance(e, dict) for f in e['chapters']]
    named = {f: f'{i:02}_' + f.split('_', 1)[1] for i, f in enumerate(files, 1)}
    return {old.removesuffix('.ipynb'): new.removesuffix('.ipynb') for old, new in named.items() if old != new}

def mend(names):
    "Replace the old names in all texts, then rename the files, in two steps as names may change places"
    texts = [root/'_quarto.yml', *root.glob('*.md'), *(root/'results').glob('*.md'),
             *(p for folder in ('nbs', 'tests', 'docs', 'benchmarks', 'resnotes') for p in (root/folder).glob('*.*') if p.is_file())]
    old = re.compile(r'\b(' + '|'.join(map(re.escape, names)) + r')\b')
    for path in texts:
        if path.suffix not in ('.yml', '.md', '.ipynb', '.py', '.json', '.jsonl') or path.is_symlink(): continue
        text = path.read_text(encoding='utf-8')
        mended = old.sub(lambda m: names[m[1]], text)
        if mended != text: path.write_text(mended, encoding='utf-8')
    for name in names: (root/'nbs'/f'{name}.ipynb').rename(root/'nbs'/f'{name}.moving')
    for name, new in names.items(): (root/'nbs'/f'{name}.moving').rename(root/'nbs'/f'{new}.ipynb')

if __name__ == '__main__':
    names = new_names()
    if names: mend(names)
    for name, new in names.items(): print(f'{name} -> {new}')
