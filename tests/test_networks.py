"Names, changes, towers and the row transformer, counts against closed forms, wrong arguments"
import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from resnotes.blocks import Residual, StrictBlock, TakiBlock
from resnotes.networks import *
from resnotes.resnet import VGG, ResNet, ResNetConfig, VGGConfig, resnet_configs
from resnotes.unet import StrictUNet, UNetConfig, unet_configs

TINY = {
    'strict': TowerConfig(3, width=4),
    'final': TowerConfig(2, width=4, placement='final', batch_norm=False),
    'taki': TowerConfig(3, width=4, block='taki', placement='none', kernel_size=8, stride=2),
    'normed taki': TowerConfig(2, width=4, block='taki', batch_norm=True),
    'rows': RowTransformerConfig(layers=2, width=8, heads=2),
    'rows, norm first': RowTransformerConfig(layers=3, width=8, heads=2, norm_first=True)}

def on_meta(*args, **changes):
    with torch.device('meta'): return build(*args, **changes)

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.fixture(params=TINY)
def tiny(request): return TINY[request.param]

# --- names -----------------------------------------------------------------------------------------------------------

def test_names_hold_all_families():
    assert len(set(names())) == len(names()) and {*resnet_configs, *unet_configs, 'tower', 'taki_tower', 'row_transformer'} <= set(names())

@pytest.mark.parametrize('name', names())
def test_every_name_is_its_configuration(name):
    model, c = on_meta(name), config(name)
    assert model.config == c == config(c)
    channels, *sides = example_shape(name)
    out = c.out_channels if isinstance(c, UNetConfig) else c.n_classes
    y = model.eval()(torch.zeros(2, channels, *sides, device='meta'))
    assert y.shape == ((2, out, *sides) if isinstance(c, UNetConfig) else (2, out))

@pytest.mark.parametrize('name, kind', [('vgg16', VGG), ('resnet20', ResNet), ('wrn_10_3', ResNet), ('strict_unet48', StrictUNet),
                                        ('tower3', Tower), ('taki_tower2', Tower), ('row_transformer', RowTransformer)])
def test_kinds(name, kind): assert type(on_meta(name)) is kind

def test_names_with_numbers():
    assert config('tower7') == TowerConfig(7) and config('taki_tower200') == TowerConfig(200, block='taki', placement='none', stride=2)
    assert config('wrn_16_3').channels == (48, 96, 192) and config('tower7', depth=9).depth == 9

def test_changes_replace_fields():
    assert config('resnet20', n_classes=3).n_classes == 3 and config('strict_unet48', out_channels=2).out_channels == 2
    assert example_shape(config('resnet50', in_channels=1)) == (1, 224, 224)
    assert config('resnet20').n_classes == 10       # the table stays as it was
    with pytest.raises(FrozenInstanceError): config('tower').depth = 3

@pytest.mark.parametrize('changes', [{}, dict(down='conv2'), dict(up='transposed2', blocks=(1,)*9), dict(blocks=(0,)*15, width=1)])
def test_example_of_any_unet_passes(changes):
    model = on_meta('strict_unet48', **{'width': 2, **changes})
    shape = example_shape(model.config)
    assert model(torch.zeros(1, *shape, device='meta')).shape == (1, *shape)

# --- towers ----------------------------------------------------------------------------------------------------------

@given(depth=st.integers(1, 5), block=st.sampled_from(['strict', 'taki']), placement=st.sampled_from(['none', 'final', 'blocks']),
       batch_norm=st.sampled_from([None, True, False]), kernel_size=st.integers(1, 8), stride=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_structure_of_any_tower(depth, block, placement, batch_norm, kernel_size, stride):
    model = build(TowerConfig(depth, 4, block, placement, batch_norm, kernel_size, stride, in_channels=2, n_classes=3))
    assert [type(u) for u in model.units] == [StrictBlock if block == 'strict' else TakiBlock]*depth
    norms = [m for m in (*model.stem, *model.blocks, *model.head) if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == {'none': 0, 'final': 1, 'blocks': depth + 1}[placement]
    inside = sum(isinstance(m, nn.BatchNorm2d) for u in model.units for m in u.modules())
    normed = block == 'strict' if batch_norm is None else batch_norm
    assert inside == depth*normed*(2 if block == 'strict' else 1) and model.config.normed == normed
    x = torch.randn(3, 2, 9, 8)
    assert model(x).shape == (3, 3) and model.stem(x).shape == (3, 4, -(-9//stride), -(-8//stride))
    assert {m.kernel_size for u in model.units for m in u.modules() if isinstance(m, nn.Conv2d)} == {(kernel_size,)*2}
    assert model.stem.conv.kernel_size == (2*stride + 1,)*2 and (model.stem.conv.bias is None) == (placement == 'blocks')

def test_a_tower_is_the_sum_along_its_path():
    model, x = build(TowerConfig(4, width=4, placement='none')).eval(), torch.randn(2, 1, 8, 8)
    y = model.stem(x)
    for unit in model.units: y = y + unit.branch(y)
    torch.testing.assert_close(model.head.linear(y.mean((2, 3))), model(x))

def test_a_switched_off_branch_is_the_identity():
    unit = build(TowerConfig(1, block='taki', kernel_size=8)).units[0]
    x = torch.randn(2, 16, 5, 5)
    with torch.no_grad(): unit.branch.conv1.weight.zero_()
    assert isinstance(unit, Residual) and torch.equal(unit(x), x)

def test_tokens_are_the_rows():
    model, x = build('row_transformer', layers=1, in_channels=2).eval(), torch.randn(3, 2, 8, 8)
    seen = []
    model.embed.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    model(x)
    assert torch.equal(seen[0][:, 5], torch.cat([x[:, 0, 5], x[:, 1, 5]], 1))

def test_where_the_norms_of_a_transformer_stand():
    after, before = (build('row_transformer', layers=2, norm_first=o) for o in (False, True))
    assert after.encoder.norm is None and isinstance(before.encoder.norm, nn.LayerNorm)
    assert {layer.norm_first for layer in before.encoder.layers} == {True}

# --- modes, layouts, segments ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('segments', [1, 2, 99])
def test_segments_change_nothing(tiny, segments):
    model, x = build(tiny), torch.randn(4, *example_shape(tiny))
    twin, results = copy.deepcopy(model), []
    twin.segments = segments
    for m in (model, twin):
        y = m(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in m.parameters()), *m.buffers()])
    for a, b in zip(*results, strict=True): torch.testing.assert_close(a, b)

def test_state_and_gradients(tiny):
    a, b, x = build(tiny, n_classes=1), build(tiny, n_classes=1), torch.randn(2, *example_shape(tiny))
    a(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in a.parameters())
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.eval()(x), b.eval()(x)) and a(x[:1]).shape == (1, 1)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_precisions(tiny, dtype): assert build(tiny).to(dtype)(torch.randn(2, *example_shape(tiny), dtype=dtype)).dtype == dtype

def test_configurations_are_values():
    for c in TINY.values(): assert copy.deepcopy(c) == c and len({c, copy.deepcopy(c)}) == 1
    gated = ResNetConfig([2, 2], 4, shortcut='scale', shortcut_args={'shortcut': .5})
    assert len({gated, copy.deepcopy(gated)}) == 1 and gated != ResNetConfig((2, 2), 4, shortcut='scale')

# --- counts ----------------------------------------------------------------------------------------------------------

@given(depth=st.integers(1, 6), width=st.integers(1, 8), channels=st.integers(1, 3), classes=st.integers(1, 5),
       height=st.integers(1, 9), columns=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_counts_of_any_strict_tower(depth, width, channels, classes, height, columns):
    model = on_meta(TowerConfig(depth, width, in_channels=channels, n_classes=classes))
    assert n_parameters(model) == 9*channels*width + 2*width + depth*(18*width**2 + 6*width) + (width + 1)*classes
    assert multiply_adds(model, channels, height, columns) == (9*channels + 18*depth*width)*width*height*columns + width*classes

def test_counts_of_a_halving_tower():
    "A stem of 5×5 kernels, 3×3 convolutions on images of half the side, and the linear head"
    model = on_meta('taki_tower30')
    assert multiply_adds(model, 1, 8, 8) == 25*16*16 + 30*9*16*16*16 + 160
    assert n_parameters(model) == 25*16 + 16 + 30*9*16*16 + 170

@pytest.mark.parametrize('norm_first', [False, True])
@pytest.mark.parametrize('layers, width, channels', [(1, 8, 1), (3, 16, 2)])
def test_counts_of_a_transformer(layers, width, channels, norm_first):
    model = on_meta('row_transformer', layers=layers, width=width, in_channels=channels, norm_first=norm_first)
    assert multiply_adds(model, channels, 8, 8) == layers*(8*width**2*8 + 2*64*width) + 8*channels*width*8 + 10*width
    norms = 4*width*layers + 2*width*norm_first
    maps = layers*(8*width**2 + 7*width)
    assert n_parameters(model) == maps + norms + 8*channels*width + width + 8*width + 10*width + 10

@pytest.mark.parametrize('name', ['resnet20', 'plain_18', 'wrn_10_2', 'preact164', 'vgg16', 'bare114'])
def test_one_counter_and_the_closed_forms(name):
    model = on_meta(name)
    assert (n_parameters(model), multiply_adds(model, *example_shape(name))) == (model.n_parameters, model.multiply_adds())

def test_counting_leaves_the_model_alone():
    model, rng = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(.5)), torch.get_rng_state()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(): assert multiply_adds(model, 3) == 12
    assert [m.training for m in model] == [True, False, True] and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items()) and model[0].weight.grad is None
    with pytest.raises(RuntimeError): multiply_adds(model, 5)
    assert model.training and not model[1].training

# --- bad input -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make, error, message', [
    (lambda: build('resnet51'), ValueError, "name must be one of 'vgg16', .*'row_transformer', or 'wrn_n_k', 'towerL' or 'taki_towerL' with numbers"),
    (lambda: build('wrn_28'), ValueError, 'name must be one of'),
    (lambda: build('wrn_27_10'), ValueError, 'n of wrn_n_k must be 6N\\+4, that is 10, 16'),
    (lambda: build('wrn_4_10'), ValueError, 'n of wrn_n_k must be 6N\\+4'),
    (lambda: build('wrn_28_0'), ValueError, 'k must be at least 1'),
    (lambda: build('wrn_28_2.5'), ValueError, "name must be one of .*got 'wrn_28_2.5'"),
    (lambda: build('tower0'), ValueError, 'depth must be at least 1'),
    (lambda: build('unet'), ValueError, "name must be one of .*got 'unet'"),
    (lambda: config(28), TypeError, 'network must be a name or one of ResNetConfig, VGGConfig, UNetConfig, TowerConfig, RowTransformerConfig, got 28'),
    (lambda: config(['vgg16']), TypeError, "network must be a name .*got \\['vgg16'\\]"),
    (lambda: build(ResNetConfig), TypeError, 'network must be a name'),
    (lambda: build('resnet18', 10), TypeError, 'positional argument'),
    (lambda: build(UNetConfig((1,)), 2), TypeError, 'positional argument'),
    (lambda: build('resnet18', depth=3), ValueError, "field must be one of 'blocks', 'width'"),
    (lambda: build('tower', blocks=3), ValueError, "field must be one of 'depth', 'width'"),
    (lambda: build('strict_unet48', n_classes=3), ValueError, "field must be one of .*'out_channels', .*got 'n_classes'"),
    (lambda: build('tower', segments=-1), ValueError, 'segments must be at least 0'),
    (lambda: build('row_transformer', segments=1.5), TypeError, 'segments must be a whole number'),
    (lambda: TowerConfig(3, block='wide'), ValueError, "block must be one of 'strict', 'taki'"),
    (lambda: TowerConfig(3, placement='all'), ValueError, "placement must be one of 'none', 'final', 'blocks', got 'all'"),
    (lambda: TowerConfig(3, batch_norm='yes'), ValueError, 'batch_norm must be one of'),
    (lambda: TowerConfig(3, width=0), ValueError, 'width must be at least 1'),
    (lambda: TowerConfig(2.5), TypeError, 'depth must be a whole number'),
    (lambda: TowerConfig(3, kernel_size=0), ValueError, 'kernel_size must be at least 1'),
    (lambda: TowerConfig(3, stride=0), ValueError, 'stride must be at least 1'),
    (lambda: RowTransformerConfig(heads=5), ValueError, 'heads must divide width=32, got 5'),
    (lambda: RowTransformerConfig(layers=0), ValueError, 'layers must be at least 1'),
    (lambda: RowTransformerConfig(norm_first='no'), ValueError, 'norm_first must be one of'),
    (lambda: VGGConfig((1,), n_classes=0), ValueError, 'n_classes must be at least 1'),
    (lambda: build('tower2')(torch.zeros(2, 3, 8, 8)), ValueError, r'x must have shape \[N, 1, height, width\]'),
    (lambda: build('tower2')(torch.zeros(1, 8, 8)), ValueError, r'x must have shape \[N, 1, height, width\]'),
    (lambda: build('row_transformer', layers=1)(torch.zeros(2, 1, 8, 9)), ValueError, r'x must have shape \[N, 1, 8, 8\], got \(2, 1, 8, 9\)')])
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message): make()

@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_counting_leaves_weights_where_they_are_that_an_older_weight_norm_computed():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))
    weight = model[0].weight
    assert multiply_adds(model, 4) == 16 and model[0].weight is weight and weight.device.type == 'cpu'
