"What README promises in code runs and says what the text says."
import ast, re
from pathlib import Path
import pytest, torch

readme = (Path(__file__).parents[1]/'README.md').read_text(encoding='utf-8')


def test_sixty_seconds(capsys):
    torch.manual_seed(0)
    code, names = re.search(r'```python\n(.*?)```', readme, re.S)[1], {}
    exec(code, names)
    variance, layer, weight, second = capsys.readouterr().out.splitlines()
    assert names['weight'].var().item() == pytest.approx(1/(8*8*16*100), rel=.05) and 'e-06' in variance
    assert re.findall(r'# (FanInOut.*)', code) == [layer, weight]
    assert .2 < float(re.search(r'tensor\((.+?)[,)]', second)[1]) < 5  # the weights that torch.nn draws leave 1e-3


def test_your_own_network(capsys):
    torch.manual_seed(0)
    *body, last = ast.parse(re.findall(r'```python\n(.*?)```', readme, re.S)[1]).body
    names = {}
    exec(ast.unparse(ast.Module(body, [])), names)
    said = capsys.readouterr().out
    assert 'the signal on the main path grows' in said and '100 branches' in said and 'c/(nL)' in said
    assert eval(ast.unparse(last), names) == []
