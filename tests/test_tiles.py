"Types of tiles and masks, their normalisation, and the random changes of a batch"
import numpy as np
import pytest
import torch
from fastai.torch_core import TensorImage
from fastai.vision.core import TensorMask

from resnotes.tiles import BinaryMask, ClassMask, Cutout, Flip, GreyTile, ReflectCrop, TileNorm, ToFloat, as_tile

def plain(x): return x.as_subclass(torch.Tensor)


# normalisation

def test_norm_survives_constant_tiles_half_precision_and_a_batch_of_one():
    x = GreyTile(torch.stack([torch.full((1,7,9), v) for v in (0., .5, 1.)]))
    assert plain(TileNorm()(x)).abs().max() < 1e-3
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        out = TileNorm()(GreyTile(torch.rand(1,1,7,9).to(dtype)))
        assert out.isfinite().all() and abs(out.double().std(correction=0) - 1) < .05
    assert TileNorm()(GreyTile(torch.rand(1,1,1,1))).abs().max() == 0

def test_norm_takes_channels_last_and_strided_tiles():
    x = torch.rand(2,1,8,8)
    for y in (x.contiguous(memory_format=torch.channels_last), torch.rand(2,1,8,16)[...,::2].copy_(x)):
        assert torch.allclose(plain(TileNorm()(GreyTile(y))), plain(TileNorm()(GreyTile(x))), atol=1e-6)

def test_norm_refuses_a_guard_of_zero():
    with pytest.raises(ValueError, match='guard'): TileNorm(0)


# augmentation

def pair(n=6, h=9, w=11, c=1):
    x = torch.arange(n*c*h*w, dtype=torch.float32).reshape(n,c,h,w)
    return GreyTile(x), BinaryMask(x[:,:1].clone())

@pytest.mark.parametrize('tfm', [Flip(), ReflectCrop(3), ReflectCrop(8)])
def test_masks_follow_their_images(tfm):
    x, y = tfm(pair(), split_idx=0)
    assert type(x) is GreyTile and type(y) is BinaryMask and torch.equal(plain(x), plain(y))
    assert not torch.equal(plain(x), plain(pair()[0]))

@pytest.mark.parametrize('tfm', [Flip(), ReflectCrop(3), Cutout(4)])
def test_a_restored_generator_repeats_the_batch(tfm):
    state = torch.get_rng_state()
    first, second = (tfm(pair(), split_idx=0)[0] for _ in range(2))
    torch.set_rng_state(state)
    assert torch.equal(first, tfm(pair(), split_idx=0)[0]) and torch.equal(second, tfm(pair(), split_idx=0)[0])

@pytest.mark.parametrize('split_idx', (1, None))
def test_nothing_is_drawn_outside_the_training_part(split_idx):
    state = torch.get_rng_state()
    for tfm in (Flip(), ReflectCrop(3), Cutout(4)):
        assert torch.equal(tfm(pair(), split_idx=split_idx)[0], pair()[0])
    assert torch.equal(state, torch.get_rng_state())

def test_labels_are_left_alone():
    y = torch.arange(6)
    assert Flip()((pair()[0], y), split_idx=0)[1] is y

def test_crop_of_three_channels_moves_all_alike():
    x = torch.rand(5,1,8,8).expand(5,3,8,8) + torch.arange(3)[:,None,None]
    out = plain(ReflectCrop(4)(GreyTile(x), split_idx=0))
    assert torch.allclose(out[:,0], out[:,1] - 1, atol=1e-6) and torch.allclose(out[:,0], out[:,2] - 2, atol=1e-6)

@pytest.mark.parametrize('make, said', [(lambda: ReflectCrop(0), 'pad'), (lambda: Cutout(0), 'side'), (lambda: Cutout(2.5), 'side')])
def test_augmentation_refuses(make, said):
    with pytest.raises((ValueError, TypeError), match=said): make()


@pytest.mark.parametrize('kind', (TensorMask, ClassMask))
@pytest.mark.parametrize('tfm', [Flip(), ReflectCrop(3)])
def test_class_masks_without_a_channel_follow_their_images(tfm, kind):
    x = torch.arange(6*9*11).reshape(6,1,9,11)
    a, b = tfm((GreyTile(x.float()), kind(x[:,0])), split_idx=0)
    assert type(b) is kind and b.shape == (6,9,11) and b.dtype == torch.int64 and torch.equal(plain(a)[:,0].long(), plain(b))

def test_types_tell_masks_from_classes():
    to_float = ToFloat()
    assert ToFloat()(BinaryMask(torch.ones(1,2,2).byte())).dtype == torch.float32 and to_float(ClassMask(torch.ones(2,2).byte())).dtype == torch.int64
    assert type(as_tile(torch.zeros(4,1,2,2))) is GreyTile and type(as_tile(torch.zeros(4,3,2,2))) is TensorImage
    assert type(to_float(as_tile(torch.zeros(4,3,2,2).byte()))) is TensorImage

def test_a_tile_in_colour_has_one_mean_and_one_deviation():
    x = torch.rand(5,3,8,9)*torch.tensor([1., .5, .1])[:,None,None] + torch.tensor([0., .3, .6])[:,None,None]
    out = plain(TileNorm()(as_tile(x)))
    assert out.mean((1,2,3)).abs().max() < 1e-5 and (out.std((1,2,3), correction=0) - 1).abs().max() < 1e-4
    scale = (out[:,0] - out[:,0].mean((-1,-2), keepdim=True))/(x[:,0] - x[:,0].mean((-1,-2), keepdim=True))
    other = (out[:,2] - out[:,2].mean((-1,-2), keepdim=True))/(x[:,2] - x[:,2].mean((-1,-2), keepdim=True))
    assert torch.allclose(scale.mean((-1,-2)), other.mean((-1,-2)), rtol=1e-2)   # colours keep their proportions
    assert torch.allclose(plain(TileNorm().decode(TileNorm()(as_tile(x)))).amax((1,2,3)), torch.ones(5))

def test_nothing_is_tinted_but_classes():
    import matplotlib.pyplot as plt
    ax = ClassMask(torch.tensor([[0, 1, 2], [11, 255, 0]])).show()
    drawn = ax.images[0].get_array()
    assert drawn.mask.tolist() == [[True, False, False], [False, True, True]] and drawn.compressed().tolist() == [1, 2, 1]
    plt.close('all')
