"""Writes the picture of README.md and the title page out of the chapter that draws it.

The picture's alternative text is that of the cell (`#| fig-alt:`), so the text finds the cell."""
import base64, json, re
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def find_picture(alt):
    "The PNG that a chapter stores under this alternative text"
    for path in sorted((root/'nbs').glob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if f'#| fig-alt: {alt}\n' in ''.join(cell['source']):
                return base64.b64decode(next(o['data']['image/png'] for o in cell['outputs'] if 'image/png' in o.get('data', {})))
    raise LookupError(f'no cell has this fig-alt: {alt}')

def pictures():
    "Alternative text and file of every picture in README.md"
    return [(alt, root/src) for alt, src in re.findall(r'!\[([^\]]*)\]\(([^)]+)\)', (root/'README.md').read_text(encoding='utf-8'))]

if __name__ == '__main__':
    for alt, path in pictures():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(find_picture(alt))
