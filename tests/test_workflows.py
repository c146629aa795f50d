"What runs on the hosts of the repository: actions by commit, no more rights than needed, nothing published before the tests"
import re
from pathlib import Path

import pytest
import yaml

workflows = sorted((Path(__file__).resolve().parents[1]/'.github'/'workflows').glob('*.yml'))

@pytest.mark.parametrize('path', workflows, ids=lambda p: p.stem)
def test_actions_are_named_by_commit_and_rights_are_few(path):
    text, plan = path.read_text(), yaml.safe_load(path.read_text())
    for used in re.findall(r'uses: (\S+)', text): assert used.startswith('./') or re.fullmatch(r'[\w/-]+@[0-9a-f]{40}', used), used
    assert plan['permissions'] == {'contents': 'read'}
    for name, job in plan['jobs'].items():
        assert set(job.get('permissions', {})) <= {'pages', 'id-token'}, name
        if 'id-token' in job.get('permissions', {}): assert not any('run' in step for step in job['steps']), f'{name} has rights and runs commands'

def test_nothing_is_published_before_the_tests():
    jobs = yaml.safe_load(next(p for p in workflows if p.stem == 'publish').read_text())['jobs']
    def before(name): return {n for need in [jobs[name].get('needs', [])] for m in ([need] if isinstance(need, str) else need) for n in {m, *before(m)}}
    for name in jobs:
        if name != 'test': assert 'test' in before(name), name

def test_known_weaknesses_and_licences_are_looked_at():
    text = next(p for p in workflows if p.stem == 'test').read_text()
    assert 'pip-audit --requirement constraints.txt' in text and 'pip-licenses' in text

def test_both_ends_of_the_dependencies_are_tried_and_chapters_run_with_the_newest():
    job = yaml.safe_load(next(p for p in workflows if p.stem == 'test').read_text())['jobs']['range']
    ends = {row['resolution']: row['python'] for row in job['strategy']['matrix']['include']}
    assert ends == {'lowest-direct': '3.11', 'highest': '3.14'}
    step, = [s for s in job['steps'] if 'nbdev-test' in s.get('run', '')]
    assert step['if'] == "matrix.resolution == 'highest'"
