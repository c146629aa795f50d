"The figures to play with: their numbers are those of the library, and a keyboard is enough to move them"
import math

import pytest, torch

from resnotes.losses import soft_iou
from resnotes.samplers import tap_counts
from resnotes.signal import max_depth, plain_growth, residual_growth
from resnotes.summands import chain_gradients, chain_shares, harmonic_gains

@pytest.fixture
def page(tab, url):
    "The page with the figures"
    tab.goto(url + 'play.html')
    return tab

close = dict(rel=1e-9, abs=1e-300)

def test_growth_is_that_of_the_library(page):
    for gain in (1e-6, .01, .5, 2.):
        for depth in (0, 1, 30, 200):
            plain, residual = page.evaluate('([g, L]) => [play.plainGrowth(g, L), play.residualGrowth(g, L)]', [gain, depth])
            assert plain == pytest.approx(plain_growth(gain, depth), **close)
            assert residual == pytest.approx(residual_growth(gain, depth), **close)

def test_limits_of_formats_are_those_of_torch(page):
    for name, limits in page.evaluate('play.formats').items():
        info = torch.finfo(getattr(torch, name))
        assert limits == pytest.approx([info.max, info.smallest_normal, info.eps], **close)
        assert page.evaluate('f => play.maxDepth(f, 2)', name) == max_depth(getattr(torch, name), 2)

def test_shares_and_gradients_are_those_of_the_library(page):
    for gains in ([1.]*20, [.2, .7, 1.5], harmonic_gains(30), [0., 1.]):
        assert page.evaluate('g => play.chainShares(g)', gains) == pytest.approx(chain_shares(gains), **close)
        assert page.evaluate('g => play.chainGradients(g)', gains) == pytest.approx(chain_gradients(gains), **close)
    equal = page.evaluate("play.gainsOf('the same in every block', 1, 30, false)")
    assert equal == pytest.approx(harmonic_gains(30), **close)
    assert page.evaluate("play.gainsOf('b/√k', 1, 30, true)") == pytest.approx(harmonic_gains(30), **close)
    assert page.evaluate("play.gainsOf('b/√L', 2, 16, true)") == pytest.approx([.5]*16, **close)

def test_taps_are_those_of_the_library(page):
    for kernel in range(1, 9):
        for stride in range(1, 5):
            assert page.evaluate('([k, s]) => play.tapCounts(k, s)', [kernel, stride]) == tap_counts(kernel, stride).tolist()

def test_soft_iou_is_that_of_the_library(page):
    g = torch.Generator().manual_seed(0)
    for eps in (0., .62, 5.):
        for share in (0., .3, 1.):
            p, t = torch.rand(1, 4, 4, generator=g, dtype=torch.float64), (torch.rand(1, 4, 4, generator=g) < share).double()
            got = page.evaluate('([p, t, e]) => play.softIou(p, t, e)', [p.flatten().tolist(), t.flatten().tolist(), eps])
            assert got == pytest.approx(soft_iou(p, t, eps).item(), rel=1e-9)
    assert page.evaluate('play.softIou([0, 0], [0, 0], 0)') == 1

def said(page, name): return page.locator(f'[data-play={name}] .play-said').inner_text()

def test_every_figure_has_come(page):
    for name in ('depth', 'shares', 'taps', 'iou'):
        figure = page.locator(f'[data-play={name}]')
        assert figure.locator('input, select').count() >= 2 and said(page, name)
        assert 'The controls appear' not in figure.inner_text()
        for control in figure.locator('input, select').all(): assert control.evaluate('e => e.labels.length') == 1

def test_a_slider_moves_by_keyboard(page):
    kernel = page.get_by_label('kernel size')
    kernel.focus()
    assert '2, 1 taps' in said(page, 'taps') and 'checkerboard.' in said(page, 'taps')
    page.keyboard.press('ArrowRight')
    assert '2, 2 taps' in said(page, 'taps') and 'no checkerboard' in said(page, 'taps')
    page.keyboard.press('Tab')
    page.keyboard.press('ArrowRight')
    assert '2, 1, 1 taps' in said(page, 'taps')

def test_a_choice_moves_by_keyboard(page):
    assert f'{2**-20:.1e}'.replace('e-07', 'e-7') in said(page, 'shares')
    page.get_by_label('norms on the main path').focus()
    page.keyboard.press('ArrowDown')
    assert f'Share of the stem {1/21:.3g}' in said(page, 'shares')

def test_the_depth_tells_what_is_left(page):
    assert f'{math.sqrt(1.01**100):.3g} times' in said(page, 'depth')
    page.get_by_label('network', exact=True).select_option('plain: Wx')
    assert 'leaves the range of float32, bfloat16, float16' in said(page, 'depth')

def test_a_mask_is_drawn_by_keyboard(page):
    assert said(page, 'iou').startswith('9 of 64')
    page.locator('.play-mask button').first.focus()
    page.keyboard.press('Space')
    assert said(page, 'iou').startswith('10 of 64')
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowDown')
    assert page.evaluate('document.activeElement.ariaLabel') == 'row 2, column 2'
    page.keyboard.press('Enter')
    assert said(page, 'iou').startswith('11 of 64')
    page.get_by_text('Empty the mask').press('Enter')
    assert said(page, 'iou').startswith('0 of 64') and 'without smoothing 0.000' in said(page, 'iou')
