"""Quarto runs this after it has written the pages: formulas come from the site itself, and what a page still asks of another host is named.

The copy of MathJax is the one that the pip-only site has. Where it is not installed, the pages stay as Quarto wrote them."""
import os, re
from importlib import import_module
from pathlib import Path
from shutil import copytree, ignore_patterns

def own(html):
    "The page with MathJax from its own site, and without the scripts of other hosts that nothing on it needs"
    html = re.sub(r'(<script\b[^>]*\bsrc=)"https?://[^"]*/mathjax@[^"]*/([\w-]+\.js)"', r'\1"mathjax/\2"', html)
    return re.sub(r'\s*<script\b[^>]*\bsrc="https?://[^"]*"[^>]*></script>', '', html)

def asked(text):
    "Addresses of other hosts that a browser asks by itself for a page or a style sheet"
    tags = r'<(?:script|img|iframe)\b[^>]*\bsrc=|<link\b(?=[^>]*\brel="(?:stylesheet|preload|icon))[^>]*\bhref=|@import\s+(?:url\()?|\burl\('
    return re.findall(rf'(?:{tags})["\']?(https?://[^"\')\s]+)', text)

def main(out):
    try: package = import_module('sphinx-mathjax-offline')
    except ModuleNotFoundError: return print('sphinx-mathjax-offline is not installed: formulas come from another host')
    static = Path(package.__file__).parent/'static'/'mathjax'
    copytree(static, out/'mathjax', dirs_exist_ok=True, ignore=ignore_patterns('sre', '*svg*', 'mml-*', 'node-*'))
    for page in [*out.rglob('*.html'), *out.rglob('*.css')]:
        text = page.read_text(encoding='utf-8')
        if page.suffix == '.html': page.write_text(text := own(text), encoding='utf-8')
        if found := asked(text): print(f'{page.name} asks another host:', *sorted(set(found)))

if __name__ == '__main__': main(Path(os.environ['QUARTO_PROJECT_OUTPUT_DIR']))
