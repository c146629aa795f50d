"Residual units at their edges: odd sizes, single pixels, memory layouts, precisions, wrong arguments; published totals"
import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnotes.blocks import *
from resnotes.init import fans, he_normal, init_layers

sides = st.integers(1, 9)
UNITS = {'basic': lambda **kw: BasicBlock(4, 4, **kw), 'basic, stride': lambda **kw: BasicBlock(4, 8, 2, **kw),
         'zero padding': lambda **kw: BasicBlock(4, 8, 2, shortcut='zero_pad', **kw), 'bottleneck': lambda **kw: Bottleneck(8, 4, 8, groups=2, **kw),
         'wide': lambda **kw: WideBlock(4, 8, 2, **kw), 'strict': lambda **kw: StrictBlock(4, **kw), 'plain': lambda **kw: PlainBlock(4, 8, 2, **kw),
         'gates': lambda **kw: BasicBlock(4, 4, shortcut='exclusive_gate', **kw), 'taki': lambda **kw: TakiBlock(4, **kw)}

@pytest.fixture(params=UNITS)
def make(request): return UNITS[request.param]

def images(unit, *shape, **kwargs): return torch.randn(shape[0], unit.convs[0].in_channels, *shape[1:], **kwargs)

# --- shapes and cost -------------------------------------------------------------------------------------------------

@given(kernel=st.integers(1, 8), stride=st.integers(1, 4), groups=st.sampled_from([1, 2]), height=sides, width=sides)
@settings(max_examples=60, deadline=None)
def test_conv_shape_and_cost(kernel, stride, groups, height, width):
    if kernel%2 == 0: stride = 1
    shape = Conv(4, 6, kernel, stride, groups)
    layer = shape.layer()
    with FlopCounterMode(display=False) as counter: y = layer(torch.zeros(1, 4, height, width))
    assert y.shape == (1, 6, *shape.out_size(height, width))
    assert layer.weight.numel() == shape.n_parameters
    assert counter.get_total_flops() == 2*shape.multiply_adds(height, width)
    assert fans(layer).fan_in == 4/groups*kernel**2

@given(kernels=st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=4), channels=st.sampled_from([(4, 4), (4, 6), (6, 4)]), stride=st.integers(1, 3),
       order=st.sampled_from(list(orders)), shortcut=st.sampled_from(['zero_pad', 'projection', 'projection_all']), norm=st.booleans(), height=sides, width=sides)
@settings(max_examples=60, deadline=None)
def test_any_unit_knows_its_cost(kernels, channels, stride, order, shortcut, norm, height, width):
    shapes = [Conv(channels[1] if i else channels[0], channels[1], k, 1 if i else stride) for i, k in enumerate(kernels)]
    unit = Residual(shapes, order, shortcut, nn.BatchNorm2d if norm else None).eval()
    with FlopCounterMode(display=False) as counter: y = unit(torch.zeros(2, channels[0], height, width))
    assert y.shape == (2, channels[1], *unit.out_size(height, width))
    assert unit.n_parameters == sum(p.numel() for p in unit.parameters())
    assert counter.get_total_flops() == 4*unit.multiply_adds(height, width)

@pytest.mark.parametrize('shortcut', [Scale(.5), ShortcutGate(4), ExclusiveGate(4), Projection(4, 6, 2, nn.BatchNorm2d), Projection(4, 4), ZeroPad(4, 2), ShortcutDropout(), Identity(), NoShortcut()])
def test_shortcut_cost(shortcut):
    with FlopCounterMode(display=False) as counter: shortcut.eval()(torch.zeros(1, 4, 7, 5))
    assert shortcut.n_parameters == sum(p.numel() for p in shortcut.parameters())
    assert counter.get_total_flops() == 2*shortcut.multiply_adds(7, 5)

@pytest.mark.parametrize('change', [(4, 4, 1), (4, 6, 1), (4, 4, 2), (6, 4, 2)])
@pytest.mark.parametrize('name', list(shortcuts))
def test_shortcut_by_name(name, change):
    "The named shortcut fits its branch, knows its cost, and stands where it says"
    same = change == (4, 4, 1)
    args = dict(shortcut=.5) if name == 'scale' else {}
    convs = [Conv(change[0], change[1], stride=change[2]), Conv(change[1], change[1])]
    if name == 'identity' and not same:
        with pytest.raises(ValueError, match="^shortcut must be 'zero_pad' or 'projection'"): Residual(convs, shortcut=name)
        return
    unit = Residual(convs, 'original', name, shortcut_args=args)
    kind = type(unit.shortcut)
    if name in ('none', 'projection_all'): assert kind is shortcuts[name]
    elif not same: assert kind is (Projection if name == 'projection' else ZeroPad)
    else: assert kind is (Identity if name in ('zero_pad', 'projection') else shortcuts[name])
    with FlopCounterMode(display=False) as counter: y = unit.eval()(torch.zeros(1, change[0], 7, 6))
    assert y.shape == (1, change[1], *unit.out_size(7, 6))
    assert unit.n_parameters == sum(p.numel() for p in unit.parameters())
    assert counter.get_total_flops() == 2*unit.multiply_adds(7, 6)

@pytest.mark.parametrize('name', ['shortcut_gate', 'exclusive_gate'])
def test_filling_all_layers_leaves_the_bias_of_a_gate(name):
    unit = BasicBlock(4, 4, shortcut=name, shortcut_args=dict(bias=-6))
    weight = unit.shortcut.gate.weight.clone()
    init_layers(unit, he_normal)
    assert unit.shortcut.bias.tolist() == [-6]*4 and unit.shortcut.gate.bias is None
    assert not torch.equal(unit.shortcut.gate.weight, weight)
    x = torch.randn(2, 4, 5, 5)
    unit(x).sum().backward()
    assert unit.shortcut.bias.grad.abs().min() > 0

def total(stem, stages, head, norm=0):
    "Parameters of a net from its units, in closed form"
    return stem + sum(u.n_parameters for stage in stages for u in stage) + norm + head

def stage(make, n_in, n_out, count, stride): return [make(n_in, n_out, stride)] + [make(n_out, n_out, 1) for _ in range(count-1)]

@pytest.mark.parametrize('make, counts, width, expected', [
    (lambda i, o, s: BasicBlock(i, o, s), (2, 2, 2, 2), 64, 11_689_512),
    (lambda i, o, s: BasicBlock(i, o, s), (3, 4, 6, 3), 64, 21_797_672),
    (lambda i, o, s: Bottleneck(i, o//4, o, s), (3, 4, 6, 3), 256, 25_557_032),
    (lambda i, o, s: Bottleneck(i, o//4, o, s), (3, 8, 36, 3), 256, 60_192_808),
    (lambda i, o, s: Bottleneck(i, o//2, o, s, groups=32), (3, 4, 6, 3), 256, 25_028_904),
    (lambda i, o, s: ResNeXtBlock(i, 32, o//64, o, s), (3, 4, 6, 3), 256, 25_028_904)])
def test_imagenet_totals(make, counts, width, expected):
    channels = [64] + [width*2**i for i in range(4)]
    stages = [stage(make, channels[i], channels[i+1], n, 1 if i == 0 else 2) for i, n in enumerate(counts)]
    assert total(3*64*49 + 128, stages, channels[-1]*1000 + 1000) == expected

@pytest.mark.parametrize('shortcut, expected', [('zero_pad', 269_722), ('projection', 272_474)])
def test_cifar_totals(shortcut, expected):
    make = lambda i, o, s: BasicBlock(i, o, s, shortcut=shortcut)
    stages = [stage(make, max(16, o//2) if o > 16 else 16, o, 3, 1 if o == 16 else 2) for o in (16, 32, 64)]
    assert total(3*16*9 + 32, stages, 650) == expected

def test_preactivation_totals():
    wide = [stage(WideBlock, i, o, 4, s) for i, o, s in [(16, 160, 1), (160, 320, 2), (320, 640, 2)]]
    assert total(3*16*9, wide, 6410, norm=1280) == 36_479_194
    deep = [stage(lambda i, o, s: Bottleneck(i, o//4, o, s, order='preact'), i, o, 111, s) for i, o, s in [(16, 64, 1), (64, 128, 2), (128, 256, 2)]]
    assert total(3*16*9, deep, 2570, norm=512) == 10_327_706

def test_stride_of_the_bottleneck():
    late, early = Bottleneck(256, 128, 512, 2), Bottleneck(256, 128, 512, 2, stride_in='1x1')
    assert late.n_parameters == early.n_parameters
    assert late.multiply_adds(56, 56) - early.multiply_adds(56, 56) == 256*128*(56**2 - 28**2)
    assert late.out_size(55, 55) == early.out_size(55, 55) == (28, 28)

# --- inputs of every kind --------------------------------------------------------------------------------------------

def test_single_image(make):
    unit = make()
    assert unit(images(unit, 1, 5, 7)).isfinite().all()
    assert unit.eval()(images(unit, 1, 5, 7)).isfinite().all()

def test_single_pixel(make):
    unit = make().eval()
    y = unit(images(unit, 3, 1, 1))
    assert y.shape[2:] == (1, 1) and y.isfinite().all()

def test_channels_last_and_strided_views(make):
    unit = make().eval()
    x = images(unit, 2, 6, 5)
    y = unit(x)
    view = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert not view.is_contiguous()
    torch.testing.assert_close(unit(view), y)
    torch.testing.assert_close(unit.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)

def test_input_is_left_alone(make):
    unit = make()
    x = images(unit, 2, 6, 6)
    before = x.clone()
    unit(x)
    assert torch.equal(x, before)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(make, dtype):
    unit = make().eval()
    x = images(unit, 2, 6, 6)
    y = unit.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), unit.float()(x), rtol=.1, atol=.1)

def test_copies_and_state(make):
    unit, other = make().eval(), make().eval()
    x = images(unit, 2, 5, 5)
    other.load_state_dict(unit.state_dict())
    for same in (other, copy.deepcopy(unit), pickle.loads(pickle.dumps(unit))): assert torch.equal(same(x), unit(x))

def test_gradients_are_right():
    torch.manual_seed(0)
    unit = WideBlock(2, 3, 2, kernel_sizes=(3, 1)).double()
    assert torch.autograd.gradcheck(unit, torch.randn(2, 2, 5, 5).double().requires_grad_())

# --- what the parts do -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('order', ['relu_preact', 'preact'])
def test_silent_branch_is_the_identity(order):
    unit = BasicBlock(4, 4, order=order).eval()
    nn.init.zeros_(unit.branch.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(unit(x), x)

def test_projection_norm_follows_the_branch():
    normed = {o: BasicBlock(4, 8, order=o).shortcut.norm is not None for o in orders}
    assert normed == dict(original=True, norm_after_add=False, relu_before_add=True, relu_preact=True, preact=False)

def test_shared_preactivation():
    assert len(WideBlock(4, 8).before) == 2 and len(WideBlock(4, 8, shortcut='zero_pad').before) == 0
    unit = StrictBlock(4, shared=True).eval()
    x = torch.randn(2, 4, 5, 5)
    z = unit.before(x)
    torch.testing.assert_close(unit(x), z + unit.branch(z))

def test_dropout_stands_before_later_convolutions():
    names = [n for n, _ in WideBlock(4, 4, kernel_sizes=(3, 3, 3), dropout=.3).branch.named_children()]
    assert names == ['norm1', 'relu1', 'conv1', 'norm2', 'relu2', 'dropout1', 'conv2', 'norm3', 'relu3', 'dropout2', 'conv3']
    shared = [n for n, _ in WideBlock(4, 8, dropout=.3).branch.named_children()]
    assert shared == ['conv1', 'norm2', 'relu2', 'dropout1', 'conv2']

def test_zero_pad_widens_and_narrows():
    x = torch.randn(2, 4, 5, 5)
    wide = ZeroPad(4, 7, 2)(x)
    assert torch.equal(wide[:, :4], x[..., ::2, ::2]) and not wide[:, 4:].any()
    assert torch.equal(ZeroPad(4, 3)(x), x[:, :3])

@pytest.mark.filterwarnings('ignore:Using padding')
@pytest.mark.parametrize('size', [7, 8])
def test_even_kernel_pads_as_torch_does(size):
    layer = Conv(2, 3, 8).layer()
    torch_layer = nn.Conv2d(2, 3, 8, padding='same', bias=False)
    torch_layer.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, size, size)
    torch.testing.assert_close(layer(x), torch_layer(x))

@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('args', [(8, 1, 5, 8), (8, 4, 1, 8), (8, 3, 2, 12, 2)])
def test_three_forms(args, training):
    torch.manual_seed(0)
    unit = ResNeXtBlock(*args).double().train(training)
    x = torch.randn(2, 8, 5, 5).double()
    results = []
    for form in ('grouped', 'concat', 'split'):
        twin = copy.deepcopy(unit)
        twin.form = form
        y = twin(x)
        results.append([y, *torch.autograd.grad(y.sin().sum(), list(twin.parameters()))])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

# --- stochastic depth ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_stochastic_depth_extremes(per):
    f = torch.randn(3, 2, 4, 4)
    for training in (True, False):
        assert torch.equal(StochasticDepth(0., per).train(training)(f), f)
        assert not StochasticDepth(1., per).train(training)(f).any()

def test_stochastic_depth_mean_and_coins():
    torch.manual_seed(0)
    f, p, n = torch.ones(4, 2, 1, 1), .4, 3000
    whole = torch.stack([StochasticDepth(p)(f) for _ in range(n)])
    assert (whole == whole[:, :1]).all()                                     # one coin for the batch
    assert abs(whole[:, 0].mean() - (1-p)) < 4*(p*(1-p)/n)**.5
    single = StochasticDepth(p, 'sample')(torch.ones(n, 2, 3, 3))
    assert (single == single[:, :1, :1, :1]).all() and 0 < single.mean() < 1  # one coin per image

def test_dropped_unit():
    x = torch.randn(2, 4, 5, 5)
    dead = BasicBlock(4, 4, order='preact', drop_path=1.)
    assert torch.equal(dead(x), x)
    unit = BasicBlock(4, 4, order='preact', drop_path=.3).eval()
    torch.testing.assert_close(unit(x), x + .7*unit.branch[:-1](x))

def test_drop_path_rates():
    assert drop_path_rates(4, .8) == pytest.approx([.2, .4, .6, .8])
    assert drop_path_rates(1, 0.) == [0.]

# --- bad input -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make, error, message', [
    (lambda: Conv(0, 4), ValueError, 'in_channels must be at least 1'),
    (lambda: StrictBlock(0), ValueError, 'channels must be at least 1'), (lambda: TakiBlock(4.), TypeError, 'channels must be a whole number'),
    (lambda: ShortcutGate(0), ValueError, 'channels must be at least 1'), (lambda: Bottleneck(8, 0, 8), ValueError, 'width must be at least 1'),
    (lambda: Conv(4, 4.), TypeError, 'out_channels must be a whole number'),
    (lambda: BasicBlock(4, 6, groups=4), ValueError, 'groups must divide'),
    (lambda: Bottleneck(8, 6, 8, groups=4), ValueError, 'groups must divide'),
    (lambda: Conv(4, 4, 2, 2), ValueError, 'kernel_size must be odd'),
    (lambda: Conv(4, 4).out_size(0, 4), ValueError, 'height must be at least 1'),
    (lambda: BasicBlock(4, 4, order='post'), ValueError, "order must be one of 'original'"),
    (lambda: BasicBlock(4, 4, shortcut='A'), ValueError, "shortcut must be one of 'identity'"),
    (lambda: BasicBlock(4, 8, shortcut='identity'), ValueError, "shortcut must be 'zero_pad' or 'projection'"),
    (lambda: Residual([]), ValueError, 'convs must hold at least one'),
    (lambda: Residual(Conv(4, 4)), TypeError, 'convs must be a list of Conv shapes, got Conv'),
    (lambda: BasicBlock(4, 4, shortcut=nn.Identity()), TypeError, 'shortcut must be a name or a Shortcut module'),
    (lambda: BasicBlock(4, 4, shortcut='zero_pad', shortcut_args=dict(bias=-6)), TypeError, "shortcut_args must be empty where shortcut is 'zero_pad'"),
    (lambda: BasicBlock(4, 4, shortcut=ExclusiveGate(4), shortcut_args=dict(bias=-6)), TypeError, 'shortcut_args must be empty where shortcut is ExclusiveGate'),
    (lambda: BasicBlock(4, 4, shortcut='shortcut_gate', shortcut_args=dict(bias='open')), TypeError, 'bias must be a real number'),
    (lambda: BasicBlock(4, 4, shortcut=None), TypeError, 'shortcut must be a name or a Shortcut module'),
    (lambda: WideBlock(4, 4, kernel_sizes=3), TypeError, 'kernel_sizes must be a list of sides'),
    (lambda: Residual([3]), TypeError, 'convs must hold Conv shapes'),
    (lambda: WideBlock(4, 4, kernel_sizes=()), ValueError, 'convs must hold at least one'),
    (lambda: Residual([Conv(4, 8), Conv(4, 8)]), ValueError, 'convs must fit together'),
    (lambda: StrictBlock(4, norm_layer=True), TypeError, 'norm_layer must make a layer'),
    (lambda: WideBlock(4, 4, dropout=1.5), ValueError, 'dropout must be'),
    (lambda: StrictBlock(4, drop_path=-.1), ValueError, 'drop_path must be'),
    (lambda: StochasticDepth(2.), ValueError, 'p must be'),
    (lambda: StochasticDepth(.5, 'image'), ValueError, "per must be one of 'batch', 'sample'"),
    (lambda: drop_path_rates(0), ValueError, 'depth must be at least 1'),
    (lambda: Scale('half'), TypeError, 'shortcut must be a real number'),
    (lambda: ShortcutGate(4, float('nan')), ValueError, 'bias must be a finite number'),
    (lambda: ResNeXtBlock(8, 0, 4, 8), ValueError, 'cardinality must be at least 1'),
    (lambda: ResNeXtBlock(8, 2, 4, 8, form='sum'), ValueError, "form must be one of 'split'"),
    (lambda: Bottleneck(8, 4, 8, stride_in='1×1'), ValueError, "stride_in must be one of '3x3'")])
def test_bad_input(make, error, message):
    with pytest.raises(error, match='^' + message): make()

def test_single_value_per_channel_cannot_be_normalised():
    with pytest.raises(ValueError, match='more than 1 value'): StrictBlock(4)(torch.randn(1, 4, 1, 1))


def test_weights_are_counted_in_whole_numbers_without_end():
    side = np.int32(4096)
    assert Conv(side, side, np.int32(3)).multiply_adds(224, 224) == Conv(4096, 4096, 3).multiply_adds(224, 224) == 9*4096**2*224**2
