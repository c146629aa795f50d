"""Writes README.md from the title page, nbs/index.ipynb, and the picture on both from the chapter that draws it.

The picture's alternative text is that of the cell (`#| fig-alt:`), so the text finds the cell."""
import base64, json, re
from pathlib import Path

root = Path(__file__).resolve().parent.parent
last_line = 'Licence: Apache-2.0. How to contribute: [CONTRIBUTING.md](CONTRIBUTING.md).'

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def readme():
    "The title page for a reader of the repository: links lead into nbs/"
    page = '\n\n'.join(''.join(c['source']).strip() for c in cells(root/'nbs'/'index.ipynb') if c['cell_type'] == 'markdown')
    return re.sub(r'\]\((?=images/|\w+\.ipynb)', '](nbs/', page) + f'\n\n{last_line}\n'

def find_picture(alt):
    "The PNG that a chapter stores under this alternative text"
    for path in sorted((root/'nbs').glob('*.ipynb')):
        for cell in cells(path):
            if f'#| fig-alt: {alt}\n' in ''.join(cell['source']):
                return base64.b64decode(next(o['data']['image/png'] for o in cell['outputs'] if 'image/png' in o.get('data', {})))
    raise LookupError(f'no cell has this fig-alt: {alt}')

def pictures():
    "Alternative text and file of every picture in README.md"
    return [(alt, root/src) for alt, src in re.findall(r'!\[([^\]]*)\]\(([^)]+)\)', readme())]

if __name__ == '__main__':
    (root/'README.md').write_text(readme(), encoding='utf-8')
    for alt, path in pictures():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(find_picture(alt))
