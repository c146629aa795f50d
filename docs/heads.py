"""Writes what is computed of the boxes at the head of the chapters: the time that each takes, and the page that joins them all.

A box says its time in its last line: reading from the words of the chapter, running from `docs/times.json`, which `docs/times.py`
measures. `nbs/88_short.ipynb` is made of the question and the answer of every box, in the order of `_quarto.yml`."""
import json, re
from math import ceil
from pathlib import Path

import yaml
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb

import times

root = Path(__file__).resolve().parent.parent
short = root/'nbs'/'88_short.ipynb'
prose, code = 150, 300   # words a minute, with pencil and paper
before = {   # what leads from one part of the argument to the next
    'Signals and weights': 'First one layer, then a hundred: what random weights do to a signal. A residual net is a chain of blocks. '
                           'Each adds what its *branch* computes to what it reads, and the running sum is the *main path*.',
    'Components': 'What stands in a network besides weights: units, norms, samplers, and what judges the result.',
    'Networks': 'Put together, they make a sum on a main path. What each term of it is worth, and what the input is worth at its end, '
                'follows from one number per block.',
    'Diagnosis': 'These numbers can be found, set and measured in any network, and so can the everyday mistakes.',
    'Training': 'To see whether the start decides, networks have to be trained: from files to masks, watched, and killed and resumed.',
    'Laboratory': 'A claim about training takes runs that can be compared.',
    'Findings': 'What the runs say.',
    'Verdicts': 'What became of the claims that the book began with.'}

def parts():
    "Name and files of each part of the book"
    book = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['book']
    return [(e['part'], e['chapters']) for e in book['chapters'] if isinstance(e, dict)]

def chapters(): return [root/'nbs'/f for _, files in parts() for f in files]

def box(nb):
    "The paragraphs of the box in the second cell of a chapter"
    return [re.sub(r'^> ?', '', p, flags=re.M).strip() for p in re.split(r'\n>\s*\n', nb.cells[1].source)]

def read_minutes(nb):
    "Time to read what is neither hidden nor folded"
    text = '\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
    shown = [c.source for c in nb.cells if c.cell_type == 'code' and not re.match(r'#\|\s*(hide|export\b)', c.source)]
    words = [len(t.split()) for t in (re.sub('<details>.*?</details>', '', text, flags=re.S), re.sub(r'^#\|(?! \w+-cap:).*', '', '\n'.join(shown), flags=re.M))]
    return words[0]/prose + words[1]/code

def in_fives(x): return max(5, 5*round(x/5))

def time_line(path, nb):
    "The last paragraph of a box; a chapter that was never measured says how long it reads"
    reads = f'*Time:* about {in_fives(read_minutes(nb))} minutes to read'
    seconds = times.load().get(path.stem.split('_', 1)[1])
    if seconds is None: return f'{reads}.'
    slow = any(re.match(r'#\|\s*(slow|cuda)', c.source) for c in nb.cells)
    return f'{reads} and {max(5, 5*ceil(seconds/5))} seconds to run on one core' + (' without its slow cells.' if slow else '.')

def set_time(path):
    "Put the line into the box of a chapter, or change it there if it is off"
    nb = read_nb(path)
    told = [p for p in box(nb) if not p.startswith('*Time:*')] + [time_line(path, nb)]
    nb.cells[1].source = '\n>\n'.join(f'> {p}' for p in told)
    write_nb(nb, path)

def of_chapter(path):
    "Question and answer of a chapter, to stand on another page"
    nb = read_nb(path)
    question, answer, *_ = box(nb)
    title = re.match('# (.+)', nb.cells[0].source)[1]
    answer = answer.replace('](#', f']({path.name}#')
    return f'{question}\n\n{answer} *In full:* [{title}]({path.name})'

def short_way():
    "The cells of the page that joins the boxes"
    yield '# The short way\n\n> All questions of the book and their answers, in order'
    yield ('Each chapter begins with a box: a question, the answer, the names to take away. Here are the questions and answers alone, one '
           'after the other. They give the argument of the book in less than an hour. The last link of each leads to its '
           'derivation, code and pictures; words in a sense of their own stand in the [glossary](96_symbols.ipynb).')
    for part, files in parts():
        yield f'## {part}'
        yield before[part]
        for f in files: yield of_chapter(root/'nbs'/f)

def short_nb():
    nb = new_nb([mk_cell(source, 'markdown', id=f'short{i:03}') for i, source in enumerate(short_way())])
    nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    return nb

if __name__ == '__main__':
    for path in chapters(): set_time(path)
    write_nb(short_nb(), short)
