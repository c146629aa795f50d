"Moments of random signals: layers, ReLUs, norms, and the test of many means"
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t
from torch import nn

from resnotes.blocks import Conv, SlopedReLU
from resnotes.init import glorot_normal
from resnotes.moments import (Moments, conv_moments, few_patterns, hotelling, norm_moments,
                              seen_by_taps, total_moments, white)
from resnotes.summands import relu_variance

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def products(m):
    "M(p, p') at all pairs of pixels"
    return torch.einsum('ihw,ikl->hwkl', m.patterns, m.patterns)

def signal(*parts):
    "Signal of fluctuation 1 with these patterns"
    u = torch.stack(parts)
    return Moments(torch.ones(u.shape[1:]).double() + u.square().sum(0), u)


# --- a ReLU ------------------------------------------------------------------------------------------------------------
def drawn_relu(m, relu=nn.ReLU(), draws=400_000):
    "Mean product of two images of one channel after a ReLU, at all pairs of pixels, and its error"
    u = m.patterns.flatten(1)
    fluctuation = (m.second - m.patterns.square().sum(0)).flatten().sqrt()
    image = torch.randn(draws, len(u)).double() @ u
    a, b = (relu(image + fluctuation*torch.randn(draws, u.shape[1]).double()) for _ in range(2))
    found = torch.einsum('np,nq->npq', a, b)
    return found.mean(0), found.std(0)/math.sqrt(draws), a.square().mean(0)

def test_relu_halves_old_patterns_and_adds_the_mean_of_each_value():
    "A mean image of a tenth of the variance: the term of first order is 50 errors, the square left out is known"
    u = math.sqrt(.1)*torch.tensor([[1., -1., 1.5]]).double()
    m = signal(u)
    found, error, second = drawn_relu(m)
    wanted = products(m.relu()).reshape(3, 3)
    q, product = m.second.flatten(), products(m).reshape(3, 3)
    scale = (q[:,None]*q[None]).sqrt()
    square = scale*(product/scale)**2/(4*math.pi)
    assert ((found - wanted - square)/error).abs().max() < 5
    without_it = (q[:,None]*q[None]).sqrt()/(2*math.pi)
    for kept in (0, .5): assert ((without_it + kept*product/4 - found).abs()/error).max() > 20
    assert m.relu().second.flatten() == pytest.approx(second.numpy(), rel=.02)

@pytest.mark.parametrize('c', [0., .01, .03, -.03])
def test_relu_has_the_first_order_of_the_arc_cosine_kernel(c):
    "Two pixels of second moments 1 and 4, correlation c between images"
    u = torch.tensor([[math.sqrt(abs(c)), 2*math.copysign(math.sqrt(abs(c)), c)]]).double()
    m = Moments(torch.tensor([[1., 4.]]).double(), u[None])
    exact = 2/(2*math.pi)*(math.sqrt(1 - c*c) + c*(math.pi - math.acos(c)))
    assert products(m.relu())[0, 0, 0, 1].item() == pytest.approx(exact, abs=2*c*c/(4*math.pi) + 1e-5)

@pytest.mark.parametrize('slope', [.1, .5, 1.])
def test_a_sloped_relu_leaves_a_smaller_constant_and_more_of_old_patterns(slope):
    "Against the module, at all pairs of pixels; neither a plain ReLU's numbers nor those without the module's scale would do"
    relu, m = SlopedReLU(slope), signal(math.sqrt(.1)*torch.tensor([[1., -1., 1.5]]).double())
    found, error, second = drawn_relu(m, relu)
    q, product = m.second.flatten(), products(m).reshape(3, 3)
    square = relu.scale**2*(1 - slope)**2*product**2/(q[:,None]*q[None]).sqrt()/(4*math.pi)
    wanted, plain = (products(o).reshape(3, 3) for o in (m.relu(slope), m.relu()))
    assert ((found - wanted - square)/error).abs().max() < 5
    for wrong in (plain, wanted/relu.scale**2): assert ((found - wrong - square)/error).abs().max() > 20
    assert m.relu(slope).second.flatten() == pytest.approx(second.numpy(), rel=.02)

def test_a_slope_of_zero_is_a_relu_to_the_last_bit_and_other_slopes_keep_the_variance():
    m = signal(math.sqrt(.1)*torch.tensor([[1., -1., 1.5]]).double())
    assert all(torch.equal(a, b) for a, b in zip(m.relu(0), m.relu()))
    assert torch.equal(m.relu().second, m.second/2)
    for slope in (1e-9, .3, 1): assert white((5, 6)).relu(slope).variance == pytest.approx(relu_variance)
    assert products(white((5, 6)).relu(1)).abs().max() == 0
    for slope in (-.1, 1.1):
        with pytest.raises(ValueError, match='negative_slope must be'): m.relu(slope)

def test_relu_of_white_noise_has_the_variance_that_a_norm_sees():
    assert white((5, 6)).relu().variance == pytest.approx(relu_variance)
    assert white((5, 6)).scaled(3).relu().variance == pytest.approx(3*relu_variance)

def test_patterns_keep_their_products_when_they_are_turned():
    many = torch.einsum('ri,ihw->rhw', torch.randn(9, 3).double(), torch.randn(3, 4, 4).double())
    fewer = few_patterns(many, many.square().sum(0))
    second = many.square().sum(0)
    assert len(fewer) == 3
    assert torch.allclose(products(Moments(second, many)), products(Moments(second, fewer)))
    gram = torch.einsum('ihw,jhw->ij', fewer, fewer)
    assert torch.allclose(gram, gram.diag().diag(), atol=1e-9)


# --- layers ------------------------------------------------------------------------------------------------------------
def test_conv_moments_of_a_constant_and_of_noise():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    ones = torch.ones(9, 9, dtype=torch.float64)
    noise, constant = (conv_moments(layer, m, 1/72) for m in (white((9, 9)), Moments(ones, ones[None])))
    assert noise.variance == pytest.approx((25/27)**2) and noise.mean == 0
    assert constant.mean == pytest.approx((1 + 2*(8/9)**2)**2/9)    # parts of the outputs that see a tap, squared
    draws = torch.stack([glorot_normal(layer.weight).sum((1, 2, 3)) for _ in range(400)])
    assert draws.square().mean().item() == pytest.approx(1, rel=.1)

@pytest.mark.parametrize('layer', [nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, 2, 1),
                                   nn.ConvTranspose2d(64, 64, 3, 2, 1),
                                   nn.Conv2d(64, 64, 3, padding=1, padding_mode='circular')])
def test_patterns_are_the_products_of_mean_images(layer):
    "A relu of noise, through the layer: mean images over many draws of the weights, and what a norm leaves of them"
    m = conv_moments(layer, white((7, 8)).relu(), 1/9/64)
    wanted = products(m)
    flat, found = torch.full((1, 64, 7, 8), 1/math.sqrt(2*math.pi)), 0
    for _ in range(40):
        nn.init.normal_(layer.weight, 0, math.sqrt(1/9/64))
        nn.init.zeros_(layer.bias)
        y = layer(flat)[0].double()
        found = found + torch.einsum('chw,ckl->hwkl', y, y).detach()/64/40
    assert torch.allclose(found, wanted, atol=.1*wanted.max().item())
    centred = m.centred()
    assert torch.allclose(centred.patterns.mean((1, 2)), torch.zeros(1, dtype=torch.float64), atol=1e-9)
    assert centred.second.mean().item() == pytest.approx(m.variance)

def test_white_noise_has_no_patterns(): assert white((6, 7)).patterns.shape == (0, 6, 7)

def test_groups_see_the_channels_of_their_group_only():
    noise = white((6, 7)).relu()
    whole = conv_moments(nn.Conv2d(2, 4, 3, padding=1), noise, .1)
    grouped = conv_moments(nn.Conv2d(8, 8, 3, padding=1, groups=4), noise, .1)
    assert grouped.variance == pytest.approx(whole.variance) and grouped.mean == pytest.approx(whole.mean)

def test_a_layer_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    conv_moments(nn.utils.skip_init(nn.Conv2d, 8, 8, 3), white((6, 7)).relu(), .1)
    assert torch.equal(before, torch.get_rng_state())


# --- norms on the main path ----------------------------------------------------------------------------------------------
def orthogonal(count, size=4):
    "Centred patterns of mean square 1, orthogonal over the pixels"
    columns = torch.cat([torch.ones(size*size, 1), torch.randn(size*size, count)], 1).double()
    return torch.linalg.qr(columns)[0].T[1:].view(count, size, size)*size

def test_without_mean_images_a_norm_divides_by_the_variance():
    parts = [white((5, 5)).scaled(v) for v in (1., 2., 5.)]
    after, total = norm_moments(parts, white((5, 5)).scaled(8))
    assert [p.variance for p in after] == pytest.approx([1/8, 2/8, 5/8])
    assert total.variance == pytest.approx(1)

@pytest.mark.parametrize('m', [5, 10])
def test_a_norm_of_mean_images_alone_is_the_mean_of_one_over_chi_squared(m):
    u = orthogonal(m)
    tiny, image = white((4, 4)).scaled(1e-6), Moments(u.square().sum(0), u)
    after, total = norm_moments([tiny, image], Moments(tiny.second + image.second, u))
    assert after[0].variance/1e-6 == pytest.approx(1/(m - 2), rel=1e-3)    # E[1/chi²] with m degrees of freedom
    assert after[1].variance == pytest.approx(1, rel=1e-4) and total.variance == pytest.approx(1, rel=1e-4)

def test_terms_that_share_a_mean_image_lose_what_others_win():
    u = orthogonal(3)*.5
    noise, mixed = white((4, 4)), Moments(white((4, 4)).second + u[:2].square().sum(0), u[:2])
    parts = [noise, mixed, Moments(u[1:].square().sum(0), u[1:])]
    total = Moments(sum(p.second for p in parts), torch.stack([u[0], math.sqrt(2)*u[1], u[2]]))
    assert torch.allclose(products(total_moments(parts)), products(total))
    after, whole = norm_moments(parts, total)
    assert whole.variance == pytest.approx(1) and after[0].variance > parts[0].variance/total.variance
    assert after[2].variance < parts[2].variance/total.variance
    assert all((p.second - p.patterns.square().sum(0) > -1e-12).all() for p in after)    # fluctuation is left

def test_a_sum_of_zeros_stays_zero():
    after, total = norm_moments([white((3, 3)).scaled(0)], white((3, 3)).scaled(0))
    assert after[0].variance == total.variance == 0


# --- the test of many means ------------------------------------------------------------------------------------------------
def test_hotelling_is_the_t_test_of_one_mean():
    x = np.random.default_rng(1).normal(.2, 1, 25)
    t = x.mean()/(x.std(ddof=1)/5)
    assert hotelling(np.stack([0*x, x], 1)) == pytest.approx(2*student_t.sf(abs(t), 24))

def test_hotelling_does_not_depend_on_how_the_columns_are_mixed():
    rng = np.random.default_rng(2)
    rows, mix = rng.normal(.1, 1, (40, 5)), rng.normal(size=(4, 4))
    mixed = np.concatenate([rows[:,:1], rows[:,1:] @ mix], 1)
    assert hotelling(mixed) == pytest.approx(hotelling(rows))

def test_hotelling_sees_a_shift_and_no_more_than_chance_without():
    rng = np.random.default_rng(3)
    assert hotelling(rng.normal(.5, 1, (200, 4))) < 1e-6
    assert .03 < np.mean([hotelling(rng.normal(size=(20, 4))) < .1 for _ in range(500)]) < .17

def test_taps_of_an_even_kernel_see_its_padding():
    layer, pattern = Conv(1, 1, 4).layer(), torch.randn(1, 6, 6).double()
    seen = seen_by_taps(layer, pattern)
    alone = layer.double()(pattern[None])[0, 0]
    torch.testing.assert_close(torch.einsum('t,thw->hw', layer.weight.flatten(), seen), alone)
    m = conv_moments(layer, Moments(torch.ones(6, 6).double(), pattern), .1)
    assert m.second.shape == alone.shape
