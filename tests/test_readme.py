"What README promises in code runs and says what the text says."
import ast, re
from pathlib import Path
import pytest, torch

readme = (Path(__file__).parents[1]/'README.md').read_text(encoding='utf-8')


def test_sixty_seconds():
    torch.manual_seed(0)
    code, shown, names = re.search(r'```python\n(.*?)```', readme, re.S)[1], [], {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Expr): shown.append(eval(ast.unparse(node), names))
        else: exec(ast.unparse(node), names)
    variance, (layer, weight), second = shown
    assert variance.item() == pytest.approx(1/(8*8*16*100), rel=.05)
    assert layer.fan_in == 9/4*32 and weight == (9*16, 9*32)
    assert .01 < second.item() < 100  # the weights that torch.nn draws leave 1e-24, without biases


def test_your_own_network(capsys):
    torch.manual_seed(0)
    *body, last = ast.parse(re.findall(r'```python\n(.*?)```', readme, re.S)[1]).body
    names = {}
    exec(ast.unparse(ast.Module(body, [])), names)
    said = capsys.readouterr().out
    assert 'the second moment on the main path grows' in said and '100 branches' in said and 'c/(nL)' in said
    assert eval(ast.unparse(last), names) == []
