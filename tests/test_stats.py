"Intervals, paired tests and reports at their edges."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from resnotes.stats import compare_arms, main_metric, outcomes, paired, sentence, smallest_shown, summarize


# statistics

def table(a, b, **kw):
    return pd.DataFrame(dict(preset='smoke', arm=['a']*len(a) + ['b']*len(b), seed=[*range(len(a)), *range(len(b))], final_accuracy=[*a, *b]) | kw)

@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8), level=st.floats(.5, .99))
def test_paired_is_scipys_paired_test(pairs, level):
    a, b = zip(*pairs)
    c = paired(table(a, b), 'a', 'b', level=level)
    if np.std(np.subtract(a, b)) > 1e-6:
        want = stats.ttest_rel(a, b)
        ci = want.confidence_interval(level)
        assert np.allclose([c['p'], c['low'], c['high']], [want.pvalue, ci.low, ci.high], atol=1e-8)
        if abs(want.pvalue - (1 - level)) > 1e-9: assert ('No difference' in sentence(c)) == (want.pvalue > 1 - level)
    back = paired(table(b, a), 'a', 'b', level=level)
    assert np.isclose(back['difference'], -c['difference'], atol=1e-12)

around = np.array([-1, -1, 1, 1])*.75**.5   # four numbers of mean 0 and deviation 1

def just_shown(level): return stats.t.ppf((1 + level)/2, 3)/2   # the mean of four differences at which p is 1 - level

@pytest.mark.parametrize('level', [.8, .95, .99])
@pytest.mark.parametrize('sign', [1, -1])
def test_a_difference_is_shown_from_the_level_on(level, sign):
    "Just below it the interval still reaches zero, just above it no more"
    for factor, shown in ((.999, False), (1.001, True)):
        c = paired(table(sign*factor*just_shown(level) + around, np.zeros(4)), 'a', 'b', level=level)
        assert sentence(c).startswith(f"a is {'higher' if sign > 0 else 'lower'} than b") == shown
        assert (c['p'] < 1 - level) == shown == (c['low']*c['high'] > 0)

@pytest.mark.parametrize('among', [1, 2, 5])
def test_comparisons_of_a_report_share_the_level(among):
    "What is just shown alone is not shown among others"
    limit = just_shown(1 - .05/among)
    for factor, shown in ((.999, False), (1.001, True)):
        one = table(factor*limit + around, np.zeros(4))
        others = [table(around, []).replace({'arm': {'a': f'other {i}'}}) for i in range(among - 1)]
        text = compare_arms(pd.concat([one, *others]), pairs=[('a', 'b'), *((f'other {i}', 'b') for i in range(among - 1))])
        assert text.count('paired t test') == among and text.count('No difference is shown') == among - shown

@pytest.mark.parametrize('seeds, power', [(3, .8), (5, .8), (10, .5), (10, .9)])
def test_the_smallest_shown_difference_is_found_that_often(seeds, power):
    "By the noncentral t distribution; the formula with two quantiles of Student's is a little off at few seeds"
    c = paired(table(np.random.default_rng(0).normal(size=seeds), np.zeros(seeds)), 'a', 'b')
    error = (c['high'] - c['low'])/2/stats.t.ppf(.975, seeds - 1)
    found = stats.nct.sf(stats.t.ppf(.975, seeds - 1), seeds - 1, smallest_shown(c, power)/error)
    assert found == pytest.approx(power, abs=.05)
    assert smallest_shown(c, .95) > smallest_shown(c, .6) > 0
    assert smallest_shown(c, power) == pytest.approx(error*(stats.t.isf(.025, seeds - 1) - stats.t.ppf(1 - power, seeds - 1)))

def test_two_seeds_have_a_smallest_difference_and_a_power_has_its_limits():
    "With one degree of freedom Student's is Cauchy's distribution, whose quantile at u is the tangent of pi*(u - 1/2)"
    c = paired(table([.5, .9], [.1, .2]), 'a', 'b')   # differences .4 and .7, with a standard error of .15
    assert smallest_shown(c) == pytest.approx(.15*(math.tan(.475*math.pi) + math.tan(.3*math.pi)))
    for power in (.01, .99): assert math.isfinite(smallest_shown(c, power))
    for power in (.009, .991, 1.):
        with pytest.raises(ValueError, match='power must be a finite number in'): smallest_shown(c, power)

def test_without_a_spread_no_difference_is_the_smallest():
    for a, b in (([.5], [.1]), ([.5, .6], [.4, .5]), ([math.nan], [.1])): assert math.isnan(smallest_shown(paired(table(a, b), 'a', 'b')))

def test_equal_differences_are_none_by_rounding():
    for scale in (1, 1e-9/7, 1e9/7):
        c = paired(table(np.array([.6, .7, .8])*scale, np.array([.5, .6, .7])*scale), 'a', 'b')
        assert math.isnan(c['p']) and c['low'] == c['difference'] == c['high'] == pytest.approx(.1*scale)
        c = paired(table(np.array([.6 + 1e-9, .7, .8])*scale, np.array([.5, .6, .7])*scale), 'a', 'b')   # a difference that no rounding makes
        assert c['p'] < .01 and c['low'] < c['high']

def test_paired_goes_by_seed_and_not_by_order():
    runs = table([.1, .2, .4], [.2, .4, .1])
    shuffled = runs.iloc[[5, 0, 3, 2, 4, 1]]
    assert paired(runs, 'a', 'b') == paired(shuffled, 'a', 'b')

@pytest.mark.parametrize('a, b, said', [
    ([.5], [.1], '1 seed: no test is possible'), ([.5, .6], [.4, .5], '2 seeds with equal differences: no test is possible'), ([.5, .5], [.5, .5], 'no test is possible'),
    ([.6, .7, .8], [.5, .6, .7], 'higher than b in final_accuracy by 0.1 (3 seeds with equal differences: no test is possible)'),
    ([.5, .6, math.nan], [.1, .1, .2], '1 more seed is left out'), ([.9, .8, math.inf, .7], [.1, .2, .2], '2 more seeds are left out'), ([math.nan], [.1], 'nothing is compared'),
    ([.5, .61, .72, .8], [.1, .2, .3, .4], 'a is higher than b'), ([.1, .2, .3, .4], [.5, .61, .72, .8], 'a is lower than b')])
def test_sentences_at_the_edges(a, b, said):
    text = sentence(paired(table(a, b), 'a', 'b'))
    assert said in text and 'nan' not in text
    if 'no test' in said or 'nothing' in said: assert 'higher' not in text or text.startswith('No difference is shown')

def test_the_interval_in_a_sentence_is_that_of_what_it_calls_higher_or_lower():
    runs = table([.5, .61, .72, .8], [.1, .2, .3, .4])
    up, down = paired(runs, 'a', 'b'), paired(runs, 'b', 'a')
    assert f"a is higher than b in final_accuracy by {up['difference']:.3g} (95 % interval {up['low']:.3g} to {up['high']:.3g};" in sentence(up)
    assert f"b is lower than a in final_accuracy by {up['difference']:.3g} (95 % interval {up['low']:.3g} to {up['high']:.3g};" in sentence(down)

def test_paired_refuses():
    runs = table([.1, .2], [.3, .4])
    with pytest.raises(ValueError, match="a must be one of 'a', 'b'"): paired(runs, 'c', 'b')
    with pytest.raises(ValueError, match="b must be one of 'b'"): paired(runs, 'a', 'a')
    with pytest.raises(ValueError, match='of must be one of'): paired(runs, 'a', 'b', of='beauty')
    with pytest.raises(ValueError, match='one run per arm and seed'): paired(pd.concat([runs, runs]), 'a', 'b')

def test_summary_counts_what_diverged():
    s = summarize(table([.1, math.nan, .3], [math.inf, -math.inf, math.nan]))
    assert s.runs.tolist() == [2, 0] and s.diverged.tolist() == [1, 3] and s['mean']['a'] == pytest.approx(.2) and math.isnan(s['mean']['b'])
    two = summarize(table([.1, .2], [.3, .4]).assign(depth=[1, 2, 1, 2]), by=['arm', 'depth'])
    assert len(two) == 4 and two.diverged.tolist() == [0]*4
    assert summarize(table([.1, .2], [.3, .4]).iloc[::-1]).index.tolist() == ['b', 'a'], 'in the order of the runs'

def test_outcomes_are_numbers_that_no_trial_prescribes():
    runs = table([.5, .6], [.1, .2]).assign(epochs=2, lr=.1, momentum=.9, wd=0., clip=0., final_train_loss=1., additions_lost_before=.25,
                                            step_loss=[[1.]]*4, layer='x')
    assert outcomes(runs) == ['final_accuracy', 'final_train_loss', 'additions_lost_before']

def test_main_metric_prefers_a_metric_to_a_loss():
    assert main_metric({'final_train_loss': 1, 'final_valid_loss': 1, 'final_iou': 1, 'final_tgs_score': 1}) == 'final_iou'
    assert main_metric({'final_train_loss': 1, 'final_valid_loss': 1}) == 'final_valid_loss'

def test_a_report_is_never_nan():
    cases = {'1 run, no interval': table([.5], [.1]), 'all 2 runs diverged': table([math.nan]*2, [.1, .2]), 'the run diverged': table([math.nan], [.1]),
             '1 run, no interval, 1 more diverged': table([math.inf, .3], [.1, .2]), 'no run yet': table([.1, .2], []), '1 more seed is left out': table([.1, .2, .4], [.3, .1])}
    for said, runs in cases.items():
        text = compare_arms(runs, pairs=[('a', 'b')])
        assert said in text and 'nan' not in text, text
    alone = compare_arms(table([.1, .2], [])).splitlines()[-1]
    assert alone.startswith('  a  ') and alone.endswith('0.15 ± 0.64     2 runs'), 'one arm: a table and nothing to compare'
    both = pd.concat([table([.1, .2], [.3, .5]), table([.1, .2], [.3, .5])])
    with pytest.raises(ValueError, match='one preset and one setting'): compare_arms(both)

def test_a_report_compares_the_pairs_it_is_given_at_their_common_level():
    runs = pd.concat([table([.1, .2, .3], [.7, .8, .8]), table([], [.4, .5, .7]).replace({'arm': {'b': 'c'}})])
    assert '97.5 %' in compare_arms(runs)
    text = compare_arms(runs, pairs=[('c', 'b')])
    assert 'c is lower than b' in text and text.count('paired') == 1 and '(95 % interval' in text

def test_report_keeps_presets_apart_and_states_the_level():
    runs = pd.concat([table([.5, .61, .72], [.1, .2, .3]), table([.5, .5, .4], [.4, .5, .5]).assign(preset='cpu'),
                      table([], [.7, .8, .9]).replace({'arm': {'b': 'c'}})])
    text = compare_arms(runs)
    assert text.index('preset smoke') < text.index('preset cpu') and '97.5 % interval' in text
    assert text.count('paired t test') == 3 and 'c is higher than a' in text

def test_a_level_for_many_arms_is_no_level_of_one_s_own():
    rng = np.random.default_rng(0)
    runs = pd.DataFrame([dict(arm=f'{a}', seed=s, preset='cpu', accuracy=rng.normal()) for a in range(13) for s in range(4)])
    assert len(compare_arms(runs, 'accuracy', level=.999)) > 0

@pytest.mark.parametrize('call, least, most, beyond', [(paired, .01, 1 - 1e-9, 1 - 1e-10), (lambda runs, *_, level: summarize(runs, level=level), .01, .9999, .99991)])
def test_levels_have_their_limits(call, least, most, beyond):
    runs = table([.1, .3, .4], [.3, .4, .9])
    for level in (least, most): call(runs, 'a', 'b', level=level)
    for level in (.009, beyond, 1., 0., math.nan):
        with pytest.raises(ValueError, match='level must be a finite number in'): call(runs, 'a', 'b', level=level)

def test_a_report_states_its_level_and_names_the_arms_without_a_run():
    text = compare_arms(table([.1, .2, .4], [.3, .4, .9]), level=.9, pairs=[('b', 'a'), ('c', 'a')]).splitlines()
    assert text[0] == 'preset smoke: final_accuracy, mean and 90 % interval over seeds'
    assert [line for line in text if 'no run' in line] == [f"  {'c':24} no run yet"]

def test_at_the_very_level_nothing_is_shown_yet():
    "There the interval ends at zero"
    c = paired(table([.5, .61, .72, .8], [.1, .2, .3, .4]), 'a', 'b')
    for p, shown in ((1 - c['level'], False), (math.nextafter(1 - c['level'], 0), True)): assert sentence(c | dict(p=p)).startswith('a is higher') == shown
