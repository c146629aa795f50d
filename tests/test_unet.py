"Strict U-Nets: sizes, placements, skips, layouts, precisions, wrong arguments, cost against torch's counter, one step, checkpointing"
import itertools
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnotes.blocks import Residual
from resnotes.checks import largest
from resnotes.memory import peak_bytes
from resnotes.init import glorot_normal, init_layers
from resnotes.networks import build, example_shape
from resnotes.norm import placements
from resnotes.tables import Rows
from resnotes.unet import *

SMALL = UNetConfig((1, 0, 2, 0, 1), width=2)
DOWN, UP = ['conv2', 'conv3', 'conv5', 'average', 'blur'], ['transposed2', 'transposed3', 'transposed5', 'nearest', 'bilinear', 'subpixel']
SKIPS = ['none', 'add', 'concat']
quick, few = settings(max_examples=25, deadline=None), settings(max_examples=12, deadline=None)

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def small(**changes): return StrictUNet(replace(SMALL, **changes))

# --- sizes -----------------------------------------------------------------------------------------------------------

four_levels = {skip: StrictUNet(UNetConfig((1,)*7, width=1, skip=skip)).eval() for skip in SKIPS}

@given(height=st.integers(16, 40), width=st.integers(16, 40), skip=st.sampled_from(SKIPS))
@quick
def test_any_side_from_16_comes_back(height, width, skip):
    assert four_levels[skip](torch.zeros(1, 1, height, width)).shape == (1, 1, height, width)

def odd_kernels(samplers): return st.sampled_from([s for s in samplers if s[-1] != '2'])

@given(height=st.integers(16, 70), width=st.integers(16, 70), down=odd_kernels(DOWN), up=odd_kernels(UP))
@quick
def test_any_side_from_16_comes_back_through_other_samplers(height, width, down, up):
    model = StrictUNet(UNetConfig((0,)*7, width=1, down=down, up=up, convs=0)).eval()
    assert model(torch.zeros(1, 1, height, width)).shape == (1, 1, height, width)

@pytest.mark.parametrize('name', unet_configs)
def test_named_networks_keep_sides(name):
    with torch.device('meta'): model = build(name)
    channels = model.config.in_channels
    for height, width in ((16, 16), (17, 31), (101, 101), (33, 128)):
        assert model(torch.zeros(1, channels, height, width, device='meta')).shape == (1, 1, height, width)
    with pytest.raises(ValueError, match=rf'sides of at least 16, got \(1, {channels}, 15, 101\)'): model(torch.zeros(1, channels, 15, 101, device='meta'))

def test_the_source_s_networks_see_colour_and_ours_what_it_is_given():
    "n = 27 inputs of the first convolution; a Learner and a trial build for their loader"
    with torch.device('meta'):
        assert {name: build(name).stem.weight[0].numel() for name in unet_configs} == {'strict_unet48': 9, 'strict_unet272': 27, 'strict_unet412': 27, 'strict_unet428': 27}
        for name in unet_configs: assert build(name, in_channels=1).stem.weight.shape[1] == 1
    assert example_shape('strict_unet428') == (3, 101, 101)

@pytest.mark.parametrize('down, up', list(itertools.product(DOWN, UP)))
def test_every_pair_of_samplers(down, up):
    model = small(down=down, up=up, convs=0).eval()
    assert model(torch.zeros(1, 1, 12, 16)).shape == (1, 1, 12, 16)
    odd = torch.zeros(1, 1, 13, 15)
    if down[-1] == '2' or up[-1] == '2':
        with pytest.raises(ValueError, match='even sides|size must be'): model(odd)
    else: assert model(odd).shape == odd.shape

@pytest.mark.parametrize('shape', [(1, 1, 7, 20), (1, 1, 20, 7), (1, 2, 16, 16), (1, 16, 16), (16, 16)])
def test_wrong_images_are_refused_with_what_is_allowed(shape):
    with pytest.raises(ValueError, match=r'x must be \[batch, 1, height, width\] with sides of at least 8, got'): small()(torch.zeros(shape))

def test_least_side_trains_with_a_single_image():
    small()(torch.randn(1, 1, 8, 8)).sum().backward()

def test_channels_in_and_out():
    assert small(in_channels=3, out_channels=4)(torch.zeros(2, 3, 9, 8)).shape == (2, 4, 9, 8)

def test_a_single_level_and_no_blocks():
    assert StrictUNet(UNetConfig((2,), width=3))(torch.zeros(1, 1, 5, 2)).shape == (1, 1, 5, 2)
    assert count_convolutions(StrictUNet(UNetConfig((0,)))) == 2

# --- structure -------------------------------------------------------------------------------------------------------

@given(half=st.lists(st.integers(0, 2), max_size=2), bottom=st.integers(0, 3), placement=st.sampled_from(list(placements)), convs=st.integers(0, 2))
@quick
def test_path_is_the_network_and_counts_add_up(half, bottom, placement, convs):
    config = UNetConfig((*half, bottom, *half), width=2, placement=placement, convs=convs)
    model, samplers = StrictUNet(config).eval(), 2*len(half)
    steps, n = main_path(model), sum(config.blocks)
    assert count_convolutions(model) == 2 + samplers*(convs+1) + 2*n
    kinds = [step.kind for step in steps]
    where = {'none': 0, 'final': 1, 'samplers': 1 + samplers, 'blocks': 1 + samplers + n}
    assert kinds.count('norm') == where[placement] == sum(isinstance(s.module, nn.BatchNorm2d) for s in steps)
    assert kinds.count('block') == n and kinds.count('down') == kinds.count('up') == len(half) and kinds[0] == 'stem'
    assert [s.stage for s in steps] == sorted(s.stage for s in steps)
    assert {id(p) for s in steps for p in s.module.parameters()} == {id(p) for p in model.parameters()}
    x = y = torch.randn(2, 1, 9, 8)
    kept = []
    for s in steps:
        if s.kind == 'down': kept.append(y.shape[-2:])
        y = s.module(y, kept.pop()) if s.kind == 'up' else s.module(y)
    assert torch.equal(y, model(x))

@pytest.mark.parametrize('name', unet_configs)
def test_names_say_the_number_of_layers(name):
    with torch.device('meta'): assert name == f'strict_unet{count_convolutions(build(name))}'

def test_main_path_has_no_activation():
    for step in main_path(small(placement='blocks')):
        if step.kind != 'block': assert not any(isinstance(m, nn.ReLU) for m in step.module.modules())

def test_stages_live_in_one_feature_space():
    model = small(placement='none')
    for stage, c in zip(model.stages, model.config.channels):
        assert all(isinstance(m, Residual) and m.convs[0].in_channels == m.convs[-1].out_channels == c for m in stage)

def test_kinds_of_blocks_cost_the_same_and_differ():
    torch.manual_seed(0)
    x, nets = torch.randn(2, 1, 8, 9), [small(block=b) for b in ('strict', 'original', 'plain')]
    assert len({sum(p.numel() for p in n.parameters()) for n in nets}) == len({count_convolutions(n) for n in nets}) == 1
    for n in nets[1:]: n.load_state_dict(nets[1].state_dict())
    assert not torch.allclose(nets[1](x), nets[2](x))

def test_skips_carry_what_the_bottom_does_not():
    for skip in SKIPS:
        model = small(placement='none', skip=skip).eval()
        for p in model.samplers[2].parameters(): nn.init.zeros_(p)
        a, b = torch.randn(2, 1, 1, 8, 8)
        assert torch.equal(model(a), model(b)) == (skip == 'none')

def test_added_skips_are_sums():
    "Without blocks and norms an added skip adds the linear path around the bottom"
    plain = StrictUNet(UNetConfig((0, 0, 0), width=2, placement='none')).eval()
    added = StrictUNet(replace(plain.config, skip='add')).eval()
    added.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 8, 9)
    beside = plain.head(plain.stem(x)) - plain.head(torch.zeros_like(plain.stem(x)))
    assert torch.allclose(added(x), plain(x) + beside, atol=1e-6)

# --- modes, layouts, precisions --------------------------------------------------------------------------------------

def test_training_uses_the_batch_and_inference_does_not():
    model, x = small(), torch.randn(3, 1, 10, 11)
    model(x)
    assert not torch.allclose(model(x)[:1], model(x[:1]), atol=1e-4)
    model.eval()
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)

@pytest.mark.parametrize('skip', SKIPS)
def test_channels_last_and_strided_images(skip):
    model, x = small(skip=skip).eval(), torch.randn(2, 1, 9, 12)
    y = model(x)
    assert torch.allclose(model(x.mT.contiguous().mT), y, atol=1e-5)
    assert torch.allclose(model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), y, atol=1e-5)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_precisions(dtype): assert small().to(dtype)(torch.randn(2, 1, 8, 8, dtype=dtype)).dtype == dtype

def test_state_round_trip(tmp_path):
    a, b, x = small(), small(), torch.randn(2, 1, 8, 8)
    a(x)
    torch.save(a.state_dict(), tmp_path/'w.pt')
    b.load_state_dict(torch.load(tmp_path/'w.pt', weights_only=True))
    assert torch.equal(a.eval()(x), b.eval()(x))

# --- wrong arguments -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('change, message', [
    (dict(blocks=()), 'odd number'), (dict(blocks=(1, 1)), 'odd number'), (dict(blocks=3), 'odd number'), (dict(blocks=(1, -1, 1)), 'blocks must be at least 0'),
    (dict(width=0), 'width must be at least 1, got 0'), (dict(convs=-1), 'convs must be at least 0'), (dict(in_channels=0), 'in_channels'),
    (dict(out_channels=0), 'out_channels'), (dict(placement='all'), "placement must be one of 'none', 'final', 'samplers', 'blocks', got 'all'"),
    (dict(down='x'), "down must be one of 'conv2'"), (dict(up='x'), "up must be one of 'transposed2'"), (dict(skip='x'), "skip must be one of 'none', 'add', 'concat'"),
    (dict(block='x'), "block must be one of 'strict', 'original', 'plain', got 'x'")])
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message): build('strict_unet48', **change)

def test_wrong_types_and_segments():
    with pytest.raises(ValueError, match="field must be one of 'blocks', 'width'.*got 'depth'"): build(SMALL, depth=2)
    with pytest.raises(ValueError, match='channels must be at least 1, got 0'): Join('add', 0)
    with pytest.raises(TypeError, match='blocks must be a whole number, got 1.5'): UNetConfig((1.5,))
    with pytest.raises(TypeError, match='width must be a whole number'): UNetConfig((1,), width=2.)
    with pytest.raises(ValueError, match='segments must be at least 0, got -1'): build(SMALL, segments=-1)
    with pytest.raises(FrozenInstanceError): SMALL.width = 3
    with pytest.raises(ValueError, match='skip must be'): main_path(small(skip='concat'))
    with pytest.raises(ValueError, match='sides of at least 8'): costs(small(), 4, 4)
    with pytest.raises(TypeError, match='height must be a whole number, got 12.5'): costs(small(), 12.5, 12)

def test_lists_of_blocks_become_tuples(): assert UNetConfig([1, 2, 1]) == UNetConfig((1, 2, 1)) and hash(UNetConfig([1]))

# --- cost ------------------------------------------------------------------------------------------------------------

@given(down=st.sampled_from(DOWN), up=st.sampled_from(UP), skip=st.sampled_from(SKIPS), block=st.sampled_from(['strict', 'original', 'plain']),
       placement=st.sampled_from(list(placements)), height=st.sampled_from([8, 12]), width=st.sampled_from([8, 16]))
@few
def test_costs_match_torch(down, up, skip, block, placement, height, width):
    model = small(down=down, up=up, skip=skip, block=block, placement=placement)
    rows = costs(model, height, width)
    with FlopCounterMode(display=False) as flops: model(torch.zeros(1, 1, height, width))
    assert flops.get_total_flops() == 2*sum(r.multiply_adds for r in rows)
    assert sum(r.parameters for r in rows) == sum(p.numel() for p in model.parameters())
    assert sum(r.convolutions for r in rows) == count_convolutions(model)
    assert [r.stage for r in rows if r.part == 'blocks'] == list(range(5)) and (rows[-1].height, rows[-1].width) == (height, width)

def test_cost_of_each_part_by_hand():
    "Each weight of a convolution meets each pixel of its output; the fixed blur of 3×3 is work, though it learns nothing"
    rows = costs(small(down='blur', convs=1), 12, 20)
    assert isinstance(rows, Rows) and rows.to_frame().shape == (len(rows), len(rows[0]))
    work = {(r.part, r.stage): r.multiply_adds for r in rows}
    assert work['stem', 0] == work['head', 4] == 9*2*12*20 and work['blocks', 2] == 2*2*9*8*8*3*5
    assert work['blocks', 0] == 2*9*2*2*12*20

def test_costs_leave_model_and_random_numbers_alone():
    model, state = small(), torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad(): assert costs(model, 8, 8)[1].activations > 0
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

# --- training --------------------------------------------------------------------------------------------------------

def images(n, side):
    mask = F.interpolate(torch.randn(n, 1, 4, 4), (side, side), mode='bicubic') > 0
    return mask + .3*torch.randn(n, 1, side, side), mask.float()

@pytest.mark.parametrize('skip', SKIPS)
def test_steps_lower_the_loss(skip):
    model, (x, y) = StrictUNet(UNetConfig((1,)*5, width=4, skip=skip)), images(4, 17)
    init_layers(model, glorot_normal)
    sgd, losses = torch.optim.SGD(model.parameters(), .1), []
    for _ in range(12):
        losses.append(F.binary_cross_entropy_with_logits(model(x), y))
        sgd.zero_grad()
        losses[-1].backward()
        sgd.step()
    assert losses[-1] < .9*losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

def test_one_step_of_272_layers_at_full_size():
    model, (x, y) = build('strict_unet272'), images(2, 101)
    x = x.expand(-1, 3, -1, -1)   # grey in three channels, as the source's images
    init_layers(model, glorot_normal)
    loss = F.binary_cross_entropy_with_logits(model(x), y)
    loss.backward()
    with torch.no_grad():
        rate = .002/sum(p.grad.square().sum() for p in model.parameters())   # for a drop of .002 to first order
        for p in model.parameters(): p -= rate*p.grad
        assert .001 < loss - F.binary_cross_entropy_with_logits(model(x), y) < .0024

def after(segments, skip, x):
    torch.manual_seed(1)
    model = small(blocks=(3, 0, 5, 2, 1), placement='blocks', skip=skip)
    model.segments = segments
    model(x).square().mean().backward()
    return [*[p.grad for p in model.parameters()], *model.buffers()]

@pytest.mark.parametrize('segments, skip', [(1, 'none'), (2, 'add'), (3, 'concat'), (99, 'none')])
def test_computing_again_changes_nothing(segments, skip):
    x = torch.randn(2, 1, 9, 8)
    for a, b in zip(after(0, skip, x), after(segments, skip, x)): torch.testing.assert_close(a, b)

def test_computing_again_needs_less():
    "As with 200 blocks at the bottom of 428 layers, which the chapter measures"
    def peak(segments):
        with torch.device('meta'):
            model = build('strict_unet428', blocks=(0, 1, 1, 60, 1, 1, 0), segments=segments)
            for p in model.parameters(): p.grad = torch.zeros_like(p)
            return peak_bytes(lambda: model(torch.zeros(1, 3, 40, 40)).sum().backward())
    assert peak(0) > 2.5*peak(12)

# --- bounds and what is not said --------------------------------------------------------------------------------------

@pytest.mark.parametrize('config', [dict(blocks=(1, 2, 1), width=4), dict(blocks=(1, 0, 2, 0, 3), width=2, convs=1, in_channels=3, out_channels=2),
                                    dict(blocks=(2,), width=8), dict(blocks=(0, 0, 0), width=4, convs=3)])
def test_the_bound_counts_every_weight(config, monkeypatch):
    weights = sum(p.numel() for p in StrictUNet(UNetConfig(**config)).parameters() if p.ndim > 1)
    monkeypatch.setitem(largest, 'weights', weights)
    UNetConfig(**config)
    monkeypatch.setitem(largest, 'weights', weights - 1)
    with pytest.raises(ValueError, match=f'must make at most {weights - 1} weights, got about {weights}'): UNetConfig(**config)

def test_the_bound_of_a_join(monkeypatch):
    monkeypatch.setitem(largest, 'weights', Join('concat', 8).conv.weight.numel())
    Join('concat', 8)
    with pytest.raises(ValueError, match='channels=9'): Join('concat', 9)

def test_what_is_not_said():
    "No pieces, and images of the side that the networks are made for"
    model = small()
    assert model.segments == 0 and costs(model) == costs(model, 101, 101) and costs(model)[-1].width == 101

@pytest.mark.parametrize('levels, names, side', [(4, {}, 101), (4, dict(down='conv2'), 104), (5, dict(up='transposed2'), 112), (5, dict(down='blur'), 101),
                                                 (8, {}, 256), (7, {}, 128), (6, {}, 101)])
def test_the_side_is_the_least_from_101_that_the_samplers_can_halve(levels, names, side):
    assert UNetConfig((1,)*(2*levels - 1), width=1, **names).side == side

def test_costs_name_channels_and_share_out_what_is_kept():
    "Of the stem its input; of all parts together what autograd keeps of one image, each storage once"
    config = UNetConfig((1, 1, 1), width=4, in_channels=3)
    rows, model, kept = costs(StrictUNet(config), 16, 20), StrictUNet(config), {}
    assert rows[0].activations == 3*16*20 and [r.channels for r in rows if r.part == 'blocks'] == list(config.channels)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): out = model(torch.randn(1, 3, 16, 20))
    assert out.shape == (1, 1, 16, 20)
    assert sum(r.activations for r in rows) == sum(t.untyped_storage().nbytes()//t.element_size() for at, t in kept.items() if at not in own)

def test_parts_stand_in_the_order_of_the_main_path():
    config = UNetConfig((1,)*5, width=4)
    down, up = ['down', 'blocks'], ['up', 'blocks']
    assert [r.part for r in costs(StrictUNet(config))] == ['stem', 'blocks', *down, *down, *up, *up, 'head']
    assert StrictUNet(config).stem.bias is None
