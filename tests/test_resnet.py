"Every published network forward and backward, counts of any configuration, weights from other libraries, wrong arguments"
import copy
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnotes.blocks import Identity, NoShortcut, Projection, TakiBlock, WideBlock, ZeroPad, orders
from resnotes.memory import peak_bytes
from resnotes.networks import build
from resnotes.resnet import *

REQUIRED = '''vgg16 vgg19 plain_18 plain_34 resnet18 resnet34 resnet50 resnet101 resnet152 resnet200 plain_20 plain_56 resnet20 resnet32 resnet44
    resnet56 resnet110 resnet1202 preact110 preact164 preact1001 resnext50_32x4d resnext101_32x4d resnext29_8x64d taki100 wrn_28_10 wrn_40_4'''.split()
TINY = {
    'basic': ResNetConfig((1, 2), 4),
    'bottleneck': ResNetConfig((2, 1), 8, 'bottleneck', cardinality=2, base_width=2),
    'plain': ResNetConfig((1, 1), 4, shortcut='none'),
    'preact': ResNetConfig((1, 1, 1), 4, order='preact', shortcut='zero_pad'),
    'large images': ResNetConfig((1, 1), 8, stem='imagenet', stem_width=4),
    'no norm': ResNetConfig((3,), 16, order='relu_before_add', shortcut='identity', kernel_sizes=(8,), batch_norm=False),
    'gated': ResNetConfig((2, 2), 4, shortcut='exclusive_gate', shortcut_args={'bias': -3}),
    'scaled': ResNetConfig((2, 2), 4, shortcut='scale', shortcut_args={'shortcut': .5, 'branch': .5}),
    'vgg': VGGConfig((1, 2), width=4, hidden=8, n_classes=10)}

def on_meta(make):
    with torch.device('meta'): return make()

@pytest.fixture(params=TINY)
def config(request): return TINY[request.param]

# --- names -----------------------------------------------------------------------------------------------------------

def test_names(): assert set(REQUIRED) <= set(resnet_configs)

@pytest.mark.parametrize('name', resnet_configs)
def test_forward_and_backward(name):
    "At a small image, with two classes; the large linear layers of VGG made narrow"
    torch.manual_seed(0)
    changes = dict(hidden=16) if name.startswith('vgg') else {}
    model = build(name, n_classes=2, **changes)
    side = max(model.config.smallest, 8 if name == 'taki100' else 1)
    if not name.startswith('vgg'): side *= 2
    model(torch.randn(2, 3, side, side)).square().sum().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g.isfinite().all() for g in grads) and grads[0].any() and grads[-1].any()

@given(n=st.integers(1, 12).map(lambda N: 6*N + 4), k=st.integers(1, 12))
@settings(max_examples=10, deadline=None)
def test_any_wide_network(n, k):
    model = on_meta(lambda: build(f'wrn_{n}_{k}'))
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == n - (k == 1)
    assert model.config.channels == (16*k, 32*k, 64*k)
    units, n_in = [], 16
    for i, channels in enumerate(model.config.channels):
        for j in range((n - 4)//6):
            stride = 2 if i and not j else 1
            units.append(on_meta(lambda: WideBlock(n_in, channels, stride)))
            n_in = channels
    assert [sum(p.numel() for p in u.parameters()) for u in units] == [u.n_parameters for u in model.units]

def test_published_totals():
    "The figures the project promises, each computed elsewhere"
    totals = dict(vgg16=138_357_544, vgg19=143_667_240, resnet18=11_689_512, resnet34=21_797_672, resnet50=25_557_032, resnet101=44_549_160, resnet152=60_192_808,
                  resnext50_32x4d=25_028_904, resnet20=269_722, resnet110=1_727_962, resnet1202=19_421_274, preact1001=10_327_706, wrn_28_10=36_479_194, wrn_40_4=8_949_210)
    assert {name: sum(p.numel() for p in on_meta(lambda: build(name)).parameters()) for name in totals} == totals

def test_shortcuts_of_names():
    def kinds(name): return {type(u.shortcut) for u in on_meta(lambda: build(name)).units}
    assert kinds('resnet34') == kinds('wrn_16_4') == {Identity, Projection}
    assert kinds('resnet20') == {Identity, ZeroPad} and kinds('plain_34') == {NoShortcut} and kinds('wrn_40_1') == {Identity, Projection}

def test_taki_unit():
    unit, twin = build('taki100').units[3], TakiBlock(16)
    twin.load_state_dict(unit.state_dict())
    x = torch.randn(2, 16, 9, 9)
    assert torch.equal(unit(x), twin(x))

# --- counts ----------------------------------------------------------------------------------------------------------

SHORTCUTS = ['none', 'zero_pad', 'projection', 'projection_all', 'scale', 'dropout', 'shortcut_gate', 'exclusive_gate']

@given(blocks=st.lists(st.integers(1, 3), min_size=1, max_size=3), width=st.integers(1, 3).map(lambda o: 4*o),
       block=st.sampled_from(['basic', 'bottleneck']), order=st.sampled_from(list(orders)), shortcut=st.sampled_from(SHORTCUTS),
       stem=st.sampled_from(['cifar', 'imagenet']), batch_norm=st.booleans(), height=st.integers(16, 40), columns=st.integers(16, 40))
@settings(max_examples=25, deadline=None)
def test_any_configuration_knows_its_cost(blocks, width, block, order, shortcut, stem, batch_norm, height, columns):
    args = {'shortcut': .5} if shortcut == 'scale' else {}
    config = ResNetConfig(blocks, width, block, order, shortcut, args, stem, stem_width=4, batch_norm=batch_norm)
    model = on_meta(lambda: ResNet(config)).eval()
    with FlopCounterMode(display=False) as counter: y = model(torch.zeros(1, 3, height, columns, device='meta'))
    assert y.shape == (1, 10)
    assert model.n_parameters == sum(p.numel() for p in model.parameters())
    assert counter.get_total_flops() == 2*model.multiply_adds(height, columns)

@pytest.mark.parametrize('convs, side', [((1,), 5), ((1, 1, 2), 40)])
def test_any_vgg_knows_its_cost(convs, side):
    model = on_meta(lambda: VGG(VGGConfig(convs, width=3, hidden=5, n_classes=2))).eval()
    with FlopCounterMode(display=False) as counter: model(torch.zeros(1, 3, side, side, device='meta'))
    assert model.n_parameters == sum(p.numel() for p in model.parameters())
    assert counter.get_total_flops() == 2*model.multiply_adds(side) and model.n_layers == sum(convs) + 3

@pytest.mark.parametrize('name', ['resnet20', 'resnet50', 'vgg16'])
def test_cost_of_an_image_the_network_refuses(name):
    model = on_meta(lambda: build(name))
    least = model.config.smallest
    assert model.multiply_adds(least) == model.multiply_adds(least, least) < model.multiply_adds(least, 2*least)
    side = model.config.side
    assert model.multiply_adds() == model.multiply_adds(side, side) and side == (32 if name == 'resnet20' else 224)
    for size, argument in (((least - 1,), 'height'), ((least, least - 1), 'width'), ((least, 0), 'width')):
        with pytest.raises(ValueError, match=f'{argument} must be at least {least}, got {size[-1]}'): model.multiply_adds(*size)
    with pytest.raises(TypeError, match='height must be a whole number, got 64.5'): model.multiply_adds(64.5)

# --- inputs of every kind --------------------------------------------------------------------------------------------

def test_single_image_single_class_single_channel(config):
    model = build(config, n_classes=1, in_channels=1).eval()
    assert model(torch.randn(1, 1, 16, 9)).shape == (1, 1)
    model.train()(torch.randn(2, 1, 16, 16)).sum().backward()

def test_channels_last(config):
    torch.manual_seed(0)
    model, x = build(config).eval(), torch.randn(2, 3, 12, 10)
    y = model(x)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(config, dtype):
    torch.manual_seed(0)
    model, x = build(config).eval(), torch.randn(2, 3, 12, 12)
    y = model(x)
    assert model.to(dtype)(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(model(x.to(dtype)).float(), y, rtol=.1, atol=.1)

def test_smallest_image(config):
    model = build(config).eval()
    least = model.config.smallest
    assert model(torch.randn(1, 3, least, least)).isfinite().all()
    if least > 1:
        with pytest.raises(ValueError, match=f'x must have sides of at least {least}, got'): model(torch.randn(1, 3, least, least - 1))

def test_configurations_are_values(config):
    assert copy.deepcopy(config) == config and len({config, copy.deepcopy(config)}) == 1
    a, b = build(config), build(config)
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(a.eval()(x), b.eval()(x))

def test_stochastic_depth_and_dropout_reach_the_units():
    model = build(ResNetConfig((2, 2), 4, drop_path_rate=.4, dropout=.1))
    assert [u.branch.drop_path.p for u in model.units] == pytest.approx([.1, .2, .3, .4])
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [.1]*4

# --- segments --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('segments', [1, 2, 'per stage'])
def test_segments_change_nothing(config, segments):
    torch.manual_seed(0)
    stages = 1 if isinstance(config, VGGConfig) else len(config.blocks)
    model = build(config, dropout=.2)
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    twin.segments = segments if segments != 'per stage' else 1 if isinstance(config, VGGConfig) else (2,)*(stages - 1) + (0,)
    results = []
    for m in (model, twin):
        torch.manual_seed(1)
        y = m(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in m.parameters()), *m.buffers()])
    for a, b in zip(*results, strict=True): assert torch.equal(a, b)

def test_memory_of_a_thousand_layers():
    torch.manual_seed(0)
    model, x = build('preact1001'), torch.randn(2, 3, 8, 8)
    for p in model.parameters(): p.register_post_accumulate_grad_hook(lambda p: setattr(p, 'grad', None))
    def peak(segments):
        model.segments = segments
        return peak_bytes(lambda: model(x).square().mean().backward())
    assert peak(0) > 4*peak((4, 2, 0))

# --- weights from elsewhere ------------------------------------------------------------------------------------------

def in_another_process(code):
    "Run there; skip where an import fails, so that a broken installation of a peer breaks nothing here"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    if 'cannot import:' in done.stdout: pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr

PEER = '''
import sys, torch
try:
    try: {imports}
    except RuntimeError:  # a torchvision built for another device looks for operators that are missing here; no classifier needs them
        for name in [n for n in sys.modules if n.partition('.')[0] == 'torchvision']: del sys.modules[name]
        lib = torch.library.Library('torchvision', 'FRAGMENT')
        for op in ('nms', 'qnms'):
            if not hasattr(torch.ops.torchvision, op): lib.define(op + '(Tensor boxes, Tensor scores, float threshold) -> Tensor')
        {imports}
except Exception as e:
    print('cannot import:', e)
    raise SystemExit
from resnotes.networks import build
from resnotes.resnet import from_torchvision, to_torchvision
for name in {names}:
    torch.manual_seed(0)
    peer, ours = {make}, build(name)
    for m in peer.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(), m.running_var.uniform_(.5, 2), m.weight.data.uniform_(.5, 1.5)
    if name[:3] == 'vgg': ours.load_state_dict(peer.state_dict())
    else:
        ours.load_state_dict(from_torchvision(peer.state_dict()))
        peer.load_state_dict(to_torchvision(ours.state_dict()))
    x = torch.randn(2, 3, 70, 64)
    with torch.no_grad(): torch.testing.assert_close(ours.eval()(x), peer.eval()(x), rtol=1e-4, atol=1e-4)
'''

@pytest.mark.parametrize('imports, names, make', [
    ('import torchvision', ('resnet18', 'resnet50', 'resnext50_32x4d'), 'torchvision.models.get_model(name)'),
    ('import timm', ('resnet18', 'resnet50'), 'timm.create_model(name)')])
def test_weights_of_peers(imports, names, make): in_another_process(PEER.format(imports=imports, names=names, make=make))

def test_renaming_there_and_back():
    for name in ('resnet18', 'resnet152', 'resnext101_32x4d'):
        state = on_meta(lambda: build(name)).state_dict()
        there = to_torchvision(state)
        assert list(from_torchvision(there)) == list(state) and all(there[t] is state[o] for t, o in zip(there, state))

@pytest.mark.parametrize('rename, name', [(to_torchvision, 'stages.0.0.before.norm1.weight'), (to_torchvision, 'layer1.0.conv1.weight'), (to_torchvision, 'head.norm.weight'),
                                          (from_torchvision, 'stages.0.0.branch.conv1.weight'), (from_torchvision, 'conv11.weight'), (from_torchvision, 'layer0.0.conv1.weight'), (from_torchvision, 'module.conv1.weight'), (from_torchvision, 'layer1.0.se.fc1.weight')])
def test_foreign_names(rename, name):
    with pytest.raises(ValueError, match=f'state must hold names that begin with .*got {re.escape(repr(name))}'): rename({name: torch.zeros(1)})

@pytest.mark.parametrize('rename', [to_torchvision, from_torchvision])
def test_a_model_is_no_state(rename):
    with pytest.raises(TypeError, match=r'state must be a `state_dict\(\)`, got ResNet'): rename(build('resnet20'))

# --- bad input -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make, error, message', [
    (lambda: wide_resnet(27, 10), ValueError, 'n of wrn_n_k must be 6N\\+4, that is 10, 16'),
    (lambda: wide_resnet(4, 10), ValueError, 'n of wrn_n_k must be 6N\\+4'),
    (lambda: wide_resnet(28, 0), ValueError, 'k must be at least 1'),
    (lambda: wide_resnet(28, 2.5), TypeError, 'k must be a whole number'),
    (lambda: build('resnet18', n_classes=0), ValueError, 'n_classes must be at least 1'),
    (lambda: build('resnet18', in_channels=2.5), TypeError, 'in_channels must be a whole number'),
    (lambda: build('resnet18', width=.5), TypeError, 'width must be a whole number'),
    (lambda: build('resnet18', segments=-1), ValueError, 'segments must be at least 0'),
    (lambda: build('resnet18', segments=(1, 2)), ValueError, 'segments must be one number or one for each of 4 stages'),
    (lambda: ResNetConfig((), 16), ValueError, 'blocks must be a tuple of one count or more, got \\(\\)'),
    (lambda: ResNetConfig(3, 16), ValueError, 'blocks must be a tuple of one count or more, got 3'),
    (lambda: ResNetConfig((1,), 16, kernel_sizes=3), ValueError, 'kernel_sizes must be a tuple of one count or more, got 3'),
    (lambda: ResNetConfig((1,), 16, kernel_sizes=()), ValueError, 'kernel_sizes must be a tuple of one count or more'),
    (lambda: ResNetConfig((1,), 16, kernel_sizes=(0,)), ValueError, 'kernel_sizes must be at least 1, got 0'),
    (lambda: ResNetConfig((1, -1), 16), ValueError, 'blocks must be at least 1'),
    (lambda: ResNetConfig((1,), 0), ValueError, 'width must be at least 1'),
    (lambda: ResNetConfig((1,), 16, 'wide'), ValueError, "block must be one of 'basic', 'bottleneck'"),
    (lambda: ResNetConfig((1,), 16, stem='tiny'), ValueError, "stem must be one of 'cifar', 'imagenet'"),
    (lambda: ResNetConfig((1,), 16, shortcut='A'), ValueError, "shortcut must be one of 'identity', 'none'"),
    (lambda: ResNetConfig((1,), 16, order='post'), ValueError, "order must be one of 'original'"),
    (lambda: ResNetConfig((1,), 16, cardinality=2), ValueError, "cardinality must be left alone where block is 'basic'"),
    (lambda: ResNetConfig((1,), 16, 'bottleneck', kernel_sizes=(3,)), ValueError, "kernel_sizes must be left alone where block is 'bottleneck'"),
    (lambda: ResNetConfig((1,), 16, 'bottleneck', base_width=0), ValueError, 'base_width must be at least 1'),
    (lambda: ResNetConfig((1,), 16, drop_path_rate=2), ValueError, 'drop_path_rate must be'),
    (lambda: ResNetConfig((1,), 16, dropout='half'), TypeError, 'dropout must be a real number'),
    (lambda: build(ResNetConfig((1, 1), 16, shortcut='identity')), ValueError, "shortcut must be 'zero_pad' or 'projection'"),
    (lambda: VGGConfig(()), ValueError, 'convs must be a tuple of one count or more'),
    (lambda: build(ResNetConfig((1,), 16, shortcut_args={'bias': 1})), TypeError, 'shortcut_args must be empty'),
    (lambda: build('resnet20', shortcut='gate'), ValueError, "shortcut must be one of .*'exclusive_gate'"),
    (lambda: VGGConfig((1,), hidden=0), ValueError, 'hidden must be at least 1'),
    (lambda: build('resnet20')(torch.randn(2, 3, 3, 8)), ValueError, 'x must have sides of at least 4'),
    (lambda: build('resnet20')(torch.randn(3, 8, 8)), ValueError, r'x must have shape \[N, 3, height, width\]'),
    (lambda: build('resnet20')(torch.randn(2, 1, 8, 8)), ValueError, r'x must have shape \[N, 3, height, width\]')])
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message): make()
