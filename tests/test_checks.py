"Checks: what passes unchanged, and what the refusals say"
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from resnotes import checks, networks, unet
from resnotes.blocks import BasicBlock, Bottleneck, Conv, StrictBlock, TakiBlock, ZeroPad
from resnotes.checks import (check_choice, check_codes, check_conv, check_count, check_images, check_mask, check_positive, check_real, check_size,
                             check_weights, largest)
from resnotes.samplers import DownConv, DownPool, ResizeConv, SubPixel, UpConv, downsampler, tap_counts, upsampler
from resnotes.trial import Trial
from resnotes.unet import Join


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
    for wrong in ('c', None, ['a'], torch.ones(2), np.array(['a', 'b'])):
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
    (torch.full((2, 2, 2), 255, dtype=torch.uint8), ValueError, 'got values from 255 to 255; divide a 0/255 mask by 255'),
    (torch.full((2, 2, 2), 2), ValueError, 'got values from 2 to 2$'),
    (torch.full((2, 2, 2), math.nextafter(1, 2), dtype=torch.float64), ValueError, 'got values from 1.0000000000000002 to'),
    (torch.full((2, 2, 2), math.nan), ValueError, '0 and 1 only, got values from nan to nan'),
    (torch.ones(2, 2, 2, dtype=torch.complex64), TypeError, 'mask must hold real numbers, got torch.complex64'),
])
def test_masks_refused(mask, error, says):
    with pytest.raises(error, match=says): check_mask(like=torch.ones(2, 2, 2), mask=mask)


# sizes: refused by a stated bound before anything is allocated

@pytest.mark.parametrize('kind, bound', [('blocks', 10_000), ('channels', 131_072), ('side of a kernel', 1001), ('convolutions', 1000), ('classes', 4096),
                                         ('weights', 2**30)])
def test_a_size_is_refused_from_its_bound_on(kind, bound):
    assert check_size(kind, n=bound) == bound
    with pytest.raises(ValueError, match=f'n must be at most {bound}, got {bound + 1}'): check_size(kind, n=bound + 1)

def makes(name, **sizes): return lambda: networks.build(name, **sizes)

@pytest.mark.parametrize('make, says', [
    (lambda: Conv(1, 1, 11_101), 'kernel_size must be at most 1001, got 11101'), (lambda: Conv(80_000_000, 1), 'in_channels must be at most 131072, got 80000000'),
    (lambda: Conv(2**17, 2**17, 3), 'in_channels=131072, out_channels=131072, kernel_size=3 must make at most 1073741824 weights'),
    (lambda: BasicBlock(1, 10**18), 'out_channels must be at most 131072'), (lambda: StrictBlock(10**18), 'in_channels must be at most'),
    (lambda: TakiBlock(16, 11_101), 'kernel_size must be at most 1001'), (lambda: Bottleneck(1, 10**18, 1), 'out_channels must be at most'),
    (lambda: ZeroPad(1, 10**18), 'out_channels must be at most 131072'), (lambda: DownConv(1, 1, 11_101), 'kernel_size must be at most 1001'),
    (lambda: UpConv(1, 80_000_000), 'out_channels must be at most'), (lambda: DownConv(2, 2, convs=19_000_000), 'convs must be at most 1000, got 19000000'),
    (lambda: UpConv(10_000, 10_000, 1001), 'must make at most 1073741824 weights'), (lambda: ResizeConv(4096, 1024, convs=1000), 'out_channels=1024, kernel_size=3, convs=1000 must make'),
    (lambda: SubPixel(2**14, 2**14), 'in_channels=16384, out_channels=65536, kernel_size=3 must make'), (lambda: DownPool(2**17, 2**17), 'must make'),
    (lambda: downsampler('conv5', 10**18, 1), 'in_channels must be at most'), (lambda: upsampler('nearest', 1, 1, 10**18), 'convs must be at most 1000'),
    (lambda: tap_counts(10**12), 'kernel_size must be at most 1001'), (lambda: tap_counts(3, stride=10**12), 'stride must be at most 1001'), (lambda: Join('concat', 2**17), 'channels=131072 must make'),
    (makes('strict_unet48', blocks=(10**18,)*3), 'sum of blocks must be at most 10000'), (makes('strict_unet48', width=80_000_000), 'width must be at most 131072'),
    (makes('strict_unet48', convs=19_000_000), 'convs must be at most 1000'), (makes('strict_unet48', blocks=(1,)*201), 'width at the bottom must be at most 131072'),
    (makes('strict_unet48', in_channels=2**17, width=2**12), 'weights, got about'), (makes('strict_unet48', blocks=(5000,)*1, width=2000), 'weights, got about'),
    (makes('resnet50', blocks=(1,)*201), 'width of the last stage must be at most'), (makes('resnet50', blocks=(6000, 6000)), 'sum of blocks must be at most 10000, got 12000'),
    (makes('resnet50', cardinality=2**17, base_width=2**17), 'weights, got about'), (makes('resnet18', kernel_sizes=(1001,)*99), 'weights, got about'),
    (makes('resnet18', width=np.int64(2**14)), 'weights, got about'), (makes('vgg16', hidden=2**17), 'weights, got about'), (makes('vgg16', convs=(10_000,)*9), 'sum of convs must be at most'),
    (makes('tower', depth=10**18), 'depth must be at most 10000'), (makes('tower', depth=9999, width=2**17, kernel_size=1001), 'weights, got about'),
    (makes('row_transformer', layers=9999, width=2**17), 'weights, got about'), (makes('row_transformer', heads=1, rows=2**17, in_channels=2**17), 'weights, got about'),
    (makes('wrn_99999994_1'), 'blocks must be at most 10000'), (makes('wrn_28_99999999'), 'width must be at most 131072'), (makes('wrn_9994_99'), 'weights, got about'),
    (makes('wrn_' + '4'*5000 + '_1'), 'name must be one of'), (makes('tower99999999'), 'depth must be at most 10000'), (makes('taki_tower' + '9'*5000), 'name must be one of')])
def test_sizes_that_cannot_be_meant(make, says, monkeypatch):
    allocated = []
    class Counted(nn.Parameter):
        def __new__(cls, data, *args): return allocated.append(data.numel()) or nn.Parameter(data, *args)
    for module in (nn.modules.conv, nn.modules.linear, nn.modules.batchnorm, nn.modules.activation): monkeypatch.setattr(module, 'Parameter', Counted)
    with pytest.raises(ValueError) as e: make()
    assert says in str(e.value) and not allocated

def test_the_largest_sizes_pass():
    assert check_size('blocks', depth=largest['blocks']) == 10_000 and check_weights(largest['weights'], width=1) == 2**30
    with pytest.raises(ValueError, match='width=3, depth=4 must make at most 1073741824 weights, got about 1073741825'): check_weights(2**30 + 1, width=3, depth=4)
    assert check_conv(2**17, 2**13, 1) == 2**30 and check_conv(6, 4, 5, groups=2) == 25*3*4 and check_conv(np.uint8(200), np.uint8(200)) == 9*200**2

@pytest.mark.parametrize('name', networks.names())
def test_the_estimate_of_the_weights_is_near_what_is_built(name):
    config = networks.config(name)
    with torch.device('meta'): exact = networks.n_parameters(networks.build(name))
    about = unet._about_weights(config) if isinstance(config, unet.UNetConfig) else config.weights
    assert .85 < about/exact < 1.3

@pytest.mark.parametrize('model, args', [('wrn_99999994_1', {}), ('strict_unet48', dict(blocks=[10**18]*3)), ('strict_unet48', dict(width=80_000_000)), ('strict_unet48', dict(convs=19_000_000)),
                                         ('tower', dict(kernel_size=11_101)), ('resnet18', dict(width=2**16)), ('row_transformer', dict(layers=10**18))])
def test_trials_refuse_sizes_when_they_are_made(model, args):
    masks = 'unet' in model
    with pytest.raises(ValueError, match='model and model_args must fit: .* must (be|make) at most'):
        Trial('x', 'a', 'smoke', 0, 'salt' if masks else 'digits', model, 1, .1, model_args=args, loss='iou' if masks else 'cross_entropy')


@pytest.mark.parametrize('dtype', [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_masks_of_types_that_cannot_be_compared(dtype):
    mask = (torch.rand(2, 3, 4) > .5).to(dtype)
    assert check_mask(mask=mask) is mask
    with pytest.raises(ValueError, match='mask must hold 0 and 1 only, got values from 7'): check_mask(mask=torch.full((1, 2, 2), 7).to(dtype))
    if dtype.is_floating_point: return
    assert check_codes(2, codes=mask) is mask
    with pytest.raises(ValueError, match='got values from 0 to 255; divide a 0/255 mask by 255'): check_mask(mask=torch.tensor([[[0, 255]]]).to(dtype))
    with pytest.raises(ValueError, match='from 0 to 1, got values from 7 to 7'): check_codes(2, codes=torch.full((1, 2, 2), 7).to(dtype))


class OnGPU:
    "What a look at values would be on a GPU: it counts how often somebody waits for it"
    is_cuda = True
    def __init__(self, fits): self.fits, self.waited = fits, 0
    def __bool__(self):
        self.waited += 1
        return self.fits

@pytest.mark.parametrize('fits', [True, False])
def test_a_gpu_that_must_not_wait_is_asked_to_look_itself(fits, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, '_assert_async', lambda *args: asked.append(args))
    look = OnGPU(fits)
    assert checks._wrong(look, False, 'no mask') is False and not look.waited and asked == [(look, 'no mask')]
    assert checks._wrong(look, True, 'no mask') is not fits and look.waited == 1 and len(asked) == 1

@pytest.mark.parametrize('look', [check_mask, lambda **kw: check_codes(2, **kw)])
def test_values_are_waited_for_unless_told_otherwise(look, monkeypatch):
    waits = []
    monkeypatch.setattr(checks, '_wrong', lambda fits, wait, says: waits.append(wait))
    for kw in ({}, dict(wait=True), dict(wait=False)): look(mask=torch.ones(1, 2, 2, dtype=torch.long), **kw)
    assert waits == [True, True, False]

def test_codes_fit_images_with_channels_and_without():
    codes = torch.zeros(2, 3, 4, dtype=torch.long)
    for like in (torch.zeros(2, 5, 3, 4), torch.zeros(2, 1, 3, 4), torch.zeros(2, 3, 4)): assert check_codes(2, like=like, codes=codes) is codes
    for like in (torch.zeros(2, 5, 4, 3), torch.zeros(1, 3, 4), torch.zeros(2, 4, 4)):
        with pytest.raises(ValueError, match=r'codes must fit images of shape .*got shape \[2, 3, 4\]'): check_codes(2, like=like, codes=codes)

def test_truth_values_and_what_is_compiled_are_not_looked_at(monkeypatch):
    truths, bytes = torch.ones(1, 2, 2, dtype=torch.bool), torch.full((1, 2, 2), 7, dtype=torch.uint8)
    monkeypatch.setattr(checks, '_wrong', lambda *args: pytest.fail('values were looked at'))
    assert check_mask(mask=truths) is truths
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    assert check_mask(mask=truths) is truths and check_mask(mask=bytes) is bytes and check_codes(2, codes=bytes) is bytes
