"Checks: what passes unchanged, and what the refusals say"
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from resnotes.checks import check_choice, check_codes, check_count, check_images, check_mask, check_positive, check_real


@given(st.integers(-100, 100), st.integers(-100, 100))
def test_counts_from_the_limit_on(low, n):
    if n >= low: assert check_count(low, n=n) == n
    else:
        with pytest.raises(ValueError, match=f'n must be at least {low}, got {n}'): check_count(low, n=n)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_real_numbers_are_finite_and_between_the_limits(x):
    if math.isfinite(x) and -1 <= x <= 1: assert check_real(-1, 1, x=x) == x
    else:
        with pytest.raises(ValueError, match='x must be a finite number in'): check_real(-1, 1, x=x)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_positive_leaves_out_zero(x):
    if x > 0: assert check_positive(x=x) == x
    else:
        with pytest.raises(ValueError, match='x must be greater than 0'): check_positive(x=x)


@pytest.mark.parametrize('value', [2, 2., Fraction(2), np.float32(2), np.int64(2)])
def test_numbers_of_every_kind(value):
    assert check_positive(value=value) is value and check_real(value=value) is value


@pytest.mark.parametrize('value', [np.int64(3), np.uint8(3), 3])
def test_counts_of_every_kind(value): assert check_count(value=value) is value


@pytest.mark.parametrize('value', [True, np.True_, '2', None, 2j, [2], torch.tensor(2)])
def test_no_numbers(value):
    for check, kind in ((check_real, 'a real number'), (check_positive, 'a real number'), (check_count, 'a whole number')):
        with pytest.raises(TypeError, match=f'depth must be {kind}, got'): check(depth=value)


def test_choice_keeps_the_order_of_the_names():
    assert check_choice({'b': 1, 'a': 2}, mode='a') == 'a' and check_choice(iter('ba'), mode='b') == 'b'
    for wrong in ('c', None, ['a'], torch.ones(2)):
        with pytest.raises(ValueError, match="mode must be one of 'b', 'a', got"): check_choice(iter('ba'), mode=wrong)


@pytest.mark.parametrize('check', [check_real, check_positive, check_count, check_images, check_mask, lambda **named: check_choice('a', **named)])
def test_one_argument_at_a_time(check):
    with pytest.raises(TypeError, match=r"one argument at a time, got \['a', 'b'\]"): check(b=1, a=1)
    with pytest.raises(TypeError, match='one argument at a time'): check()


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('shape', [(2, 3, 4), (2, 1, 3, 4), (1, 1, 1)])
def test_masks_of_every_kind(dtype, shape):
    mask = (torch.rand(shape) > .5).to(dtype)
    assert check_mask(mask=mask) is mask and check_images(mask=mask) == (shape[0], *shape[-2:])
    assert check_mask(like=mask.reshape(shape[0], 1, *shape[-2:]), mask=mask) is mask


def test_layout_does_not_matter():
    mask = torch.ones(2, 1, 4, 6).to(memory_format=torch.channels_last).transpose(2, 3)[..., ::2]
    assert check_mask(mask=mask) is mask


@pytest.mark.parametrize('wait', [True, False])
def test_values_are_looked_at_whether_a_gpu_may_wait_or_not(wait):
    wrong = torch.full((1, 2, 2), 7.)
    with pytest.raises(ValueError, match='got values from 7.0 to 7.0'): check_mask(wait=wait, mask=wrong)
    with pytest.raises(ValueError, match='from 0 to 6, got values from 7 to 7'): check_codes(7, wait=wait, mask=wrong.long())
    assert check_codes(8, wait=wait, mask=wrong.byte()).max() == 7


def test_codes_may_set_one_aside():
    codes = torch.tensor([[[0, 1, -1]]])
    assert check_codes(2, ignore_index=-1, mask=codes) is codes
    with pytest.raises(ValueError, match='from 0 to 1 or the ignored 255, got values from -1 to 1'): check_codes(2, ignore_index=255, mask=codes)
    with pytest.raises(TypeError, match='whole numbers'): check_codes(2, mask=codes.bool())


@pytest.mark.parametrize('mask, error, says', [
    (np.ones((1, 2, 2)), TypeError, 'mask must be a tensor, got ndarray'),
    (torch.ones(2, 2), ValueError, r'got shape \[2, 2\]'),
    (torch.ones(2, 3, 4, 4), ValueError, r'got shape \[2, 3, 4, 4\]'),
    (torch.ones(2, 0, 4), ValueError, 'not empty'),
    (torch.ones(3, 2, 2), ValueError, r'mask must fit images of shape \[2, 2, 2\], got shape \[3, 2, 2\]'),
    (-torch.ones(2, 2, 2), ValueError, 'got values from -1.0 to -1.0'),
    (torch.full((2, 2, 2), 255, dtype=torch.uint8), ValueError, 'divide a 0/255 mask by 255'),
    (torch.full((2, 2, 2), math.nan), ValueError, '0 and 1 only, got values from nan to nan'),
])
def test_masks_refused(mask, error, says):
    with pytest.raises(error, match=says): check_mask(like=torch.ones(2, 2, 2), mask=mask)
