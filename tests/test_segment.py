"Masks for images and folders, tiles of large images, weights that are kept, and the two commands"
import dataclasses, json, os, shutil

import numpy as np
import pytest
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.transforms import IndexSplitter
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.optimizer import Adam
from fastai.torch_core import no_random
from fastai.vision.data import ImageBlock, MaskBlock
from PIL import Image
from torch import nn
from torch.nn import functional as F

from resnotes.data import data_folder, mask_pairs, masks, otsu_masks
from resnotes.images import FileReader, read_image, read_mask, save_mask
from resnotes.init import init_layers
from resnotes.learner import LogitLoss, segmenter
from resnotes.losses import ClassIoULoss, CrossEntropyMaskLoss, IoULoss, MixedLoss
from resnotes.metrics import confusion, mean_iou
from resnotes.networks import build
from resnotes.salt import read_submission, salt, salt_sections
from resnotes.segment import (load_weights, predict_command, predict_folder, predict_masks, predictor, save_weights,
                              segment_command, tile_spans, tiled)
from resnotes.unet import UNetConfig

def plain(x): return x.as_subclass(torch.Tensor)

def fitted(dls, model, epochs=2, **kwargs):
    with no_random(0):
        learn = segmenter(dls, model, **kwargs)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, .1)
    return learn

@pytest.fixture(scope='module')
def masker(): return fitted(salt(n=40, bs=8, size=32), UNetConfig((1, 1, 1), width=4))


# masks for a folder

def test_masks_do_not_depend_on_the_company(masker):
    pictures = [salt_sections(1, seed=i, size=side)[0][0] for i, side in enumerate((32, 48, 32, 17, 48, 32))]
    pictures[3] = pictures[3][:,:,:13] if pictures[3].shape[-1] > 13 else pictures[3]
    got = predict_masks(masker, pictures)
    assert [m.shape for m in got] == [p.shape[1:] for p in pictures] and all(m.dtype == torch.bool for m in got)
    for one, p in zip(got, pictures): assert torch.equal(predict_masks(masker, [p])[0], one)
    masker.model.train()
    assert torch.equal(predict_masks(masker, pictures[:1])[0], got[0])

def test_a_folder_becomes_masks_or_run_lengths(masker, tmp_path):
    (tmp_path/'in').mkdir()
    pictures = salt_sections(3, seed=4, size=40)[0]
    for i, p in enumerate(pictures): Image.fromarray(p[0].numpy()).save(tmp_path/'in'/f'b{i}.png')
    found = predict_folder(masker, tmp_path/'in')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in'] and list(found) == ['b0', 'b1', 'b2']
    predict_folder(masker, tmp_path/'in', tmp_path/'out'), predict_folder(masker, tmp_path/'in', tmp_path/'s.csv')
    back = read_submission(tmp_path/'s.csv', (40, 40))
    for name, m in found.items():
        assert torch.equal(read_mask(tmp_path/'out'/f'{name}.png')[0].bool(), m) and torch.equal(back[name].bool(), m)

def test_names_and_endings_survive_the_way_to_a_submission(masker, tmp_path):
    (tmp_path/'in').mkdir()
    names = ['Fjällräven.PNG', '岩塩.tif', 'a b.c.png', 'comma,.bmp']
    for name, p in zip(names, salt_sections(4, seed=4, size=40)[0]): Image.fromarray(p[0].numpy()).save(tmp_path/'in'/name)
    found = predict_folder(masker, tmp_path/'in', tmp_path/'S.CSV')
    back = read_submission(tmp_path/'S.CSV', (40, 40))
    assert set(found) == set(back) == {n.rpartition('.')[0] for n in names} and all(torch.equal(back[n].bool(), found[n]) for n in found)
    predict_folder(masker, tmp_path/'in', tmp_path/'out')
    assert {f.stem for f in (tmp_path/'out').iterdir()} == set(found)

def test_predictions_replace_no_image(masker, tmp_path):
    Image.fromarray(salt_sections(1, size=40)[0][0,0].numpy()).save(tmp_path/'a.png')
    before = (tmp_path/'a.png').read_bytes()
    with pytest.raises(ValueError, match='dest must be another folder'): predict_folder(masker, tmp_path, f'{tmp_path}/../{tmp_path.name}')
    assert (tmp_path/'a.png').read_bytes() == before
    Image.open(tmp_path/'a.png').save(tmp_path/'a.bmp')
    with pytest.raises(ValueError, match='a.bmp has a twin of the same name, a.png'): predict_folder(masker, tmp_path)

@pytest.mark.parametrize('image', [torch.rand(1, 32, 32), torch.zeros(32, 32, dtype=torch.uint8), torch.zeros(3, 32, 32, dtype=torch.uint8)])
def test_images_to_predict_are_bytes_of_one_channel(masker, image):
    with pytest.raises(ValueError, match=r'images must be uint8 tensors \[1, height, width\], got'): predict_masks(masker, [image])

def test_a_folder_without_images_is_named(masker, tmp_path):
    with pytest.raises(FileNotFoundError, match='found none in .*nowhere'): predict_folder(masker, tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='found none in'): predict_folder(masker, tmp_path)
    (tmp_path/'x.png').write_bytes(b'not a picture')
    with pytest.raises(ValueError, match='x.png'): predict_folder(masker, tmp_path)


# colour

def squares(folder, n=12, channels=3):
    "Red squares on green of equal luminance, of unequal sizes; the square is the object"
    for part in ('images', 'masks'): (folder/part).mkdir(parents=True)
    for i in range(n):
        h, w = 32 + 2*(i % 3), 40 - 2*(i % 4)
        y = np.zeros((h, w), bool); y[4 + i % 5:20 + i % 5, 5 + i % 7:25 + i % 7] = True
        x = np.where(y[..., None], np.uint8([200, 0, 0]), np.uint8([0, 102, 0]))
        assert abs(x[y].mean(0) @ [.299, .587, .114] - x[~y].mean(0) @ [.299, .587, .114]) < .1
        Image.fromarray(x).save(folder/'images'/f'{i:02}.png'), save_mask(torch.tensor(y), folder/'masks'/f'{i:02}.png')
    return folder

class Pixels(nn.Module):
    "A logit from the colour of each pixel"
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)
    def forward(self, x): return self.conv(x)

@pytest.fixture(scope='module')
def painter(tmp_path_factory):
    folder = squares(tmp_path_factory.mktemp('squares'))
    return folder, fitted(masks(folder, bs=4, size=32), Pixels(3), 12)

def test_what_was_learnt_in_colour_is_predicted_in_colour(painter, tmp_path):
    folder, learn = painter
    assert learn.recorder.values[-1][2] == 1
    found = predict_folder(learn, folder/'images', tmp_path/'out')
    for name, mask in found.items():
        truth = read_mask(folder/'masks'/f'{name}.png')[0].bool()
        assert torch.equal(mask, truth) and torch.equal(read_mask(tmp_path/'out'/f'{name}.png')[0].bool(), truth)
    predict_folder(learn, folder/'images', tmp_path/'s.csv')

def test_a_network_for_grey_refuses_colour_unless_grey_was_asked_for(masker, painter, tmp_path):
    folder, _ = painter
    grey = masks(folder, bs=4, size=32, channels=1)
    assert len(predict_folder(fitted(grey, Pixels(1), 1), folder/'images')) == 12   # asked for, so done
    with no_random(0): file = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8))
    for part in ('images', 'masks'): (tmp_path/'grey'/part).mkdir(parents=True)
    for i in range(8): file.save(tmp_path/'grey'/'images'/f'{i}.png'), save_mask(torch.eye(32).bool(), tmp_path/'grey'/'masks'/f'{i}.png')
    learn = fitted(masks(tmp_path/'grey', bs=2), Pixels(1), 1)
    with pytest.raises(ValueError, match='00.png is in colour, the others are grey; channels=1 takes all as grey'): predict_folder(learn, folder/'images')
    with pytest.raises(ValueError, match='00.png is in colour'): predict_folder(masker_of_fastai(1), folder/'images')

def masker_of_fastai(channels, item_tfms=None):
    from fastai.vision.core import PILImage, PILImageBW
    x, y = np.zeros((12, 16, 16, 3), np.uint8), np.zeros((12, 16, 16), np.uint8)
    x[:, 3:9, 3:9, 0] = 200; y[:, 3:9, 3:9] = 1
    block = DataBlock((ImageBlock(PILImage if channels == 3 else PILImageBW), MaskBlock(['no', 'yes'])), splitter=IndexSplitter(range(4)),
                      get_x=lambda i: Image.fromarray(x[i]) if channels == 3 else Image.fromarray(x[i,:,:,0]), get_y=lambda i: y[i], item_tfms=item_tfms)
    return fitted(block.dataloaders(list(range(12)), bs=4, num_workers=0), Pixels(channels), 1, loss=IoULoss())

def test_a_grey_file_among_coloured_ones_is_copied_into_three(painter, tmp_path):
    _, learn = painter
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(tmp_path/'g.png')
    x = torch.arange(1024).reshape(32, 32).byte().expand(3, -1, -1)
    assert torch.equal(predict_folder(learn, tmp_path)['g'], predict_masks(learn, [x])[0])

def test_loaders_with_transforms_of_their_own_are_sent_elsewhere():
    from fasttransform import Transform
    class Half(Transform):
        def encodes(self, x:Image.Image): return x
    with pytest.raises(ValueError, match='learn.dls changes every item by Half, which files here would miss; use learn.get_preds'): predictor(masker_of_fastai(3, Half()))
    assert predictor(masker_of_fastai(3)).channels == 3
    from fastai.learner import Learner
    with pytest.raises(ValueError, match='learn must be a Learner that segmenter made'): predictor(Learner(salt(n=8, bs=2, size=16), Pixels(1), loss_func=IoULoss()))

@pytest.mark.parametrize('orientation', range(1, 9))
def test_predictions_are_upright(painter, tmp_path, orientation):
    folder, learn = painter
    im = Image.open(folder/'images'/'01.png')
    stored = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]       # what undoes the viewer's turn, as PIL numbers it
    exif = Image.Exif(); exif[0x0112] = orientation
    (im if stored is None else im.transpose(Image.Transpose(stored))).save(tmp_path/'x.png', exif=exif)
    assert torch.equal(predict_folder(learn, tmp_path)['x'], read_mask(folder/'masks'/'01.png')[0].bool())


# nothing is lost

def test_predictions_take_the_place_of_nothing(painter, tmp_path):
    folder, learn = painter
    before = {f: f.read_bytes() for f in sorted(folder.rglob('*.png'))}
    with pytest.raises(FileExistsError, match='dest must hold none of the files to write, .*masks.00.png is there .12 of 12.; overwrite=True'): predict_folder(learn, folder/'images', folder/'masks')
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'05.png').symlink_to(folder/'images'/'05.png')
    with pytest.raises(FileExistsError, match='05.png is there .1 of 12'): predict_folder(learn, folder/'images', tmp_path/'out')
    assert [f.name for f in (tmp_path/'out').iterdir()] == ['05.png']
    predict_folder(learn, folder/'images', tmp_path/'out', overwrite=True)
    assert not (tmp_path/'out'/'05.png').is_symlink() and {f: f.read_bytes() for f in before} == before
    (tmp_path/'dangling.csv').symlink_to(tmp_path/'nowhere')
    (tmp_path/'s.csv').write_text('precious')
    for name in ('s.csv', 'dangling.csv'):
        with pytest.raises(FileExistsError, match=f'{name} is there'): predict_folder(learn, folder/'images', tmp_path/name)
    assert (tmp_path/'s.csv').read_text() == 'precious' and not (tmp_path/'nowhere').exists()
    (tmp_path/'alias').symlink_to(folder/'images')
    with pytest.raises(ValueError, match='dest must be another folder'): predict_folder(learn, folder/'images', tmp_path/'alias', overwrite=True)

def test_a_name_that_is_no_text_leaves_no_half_table(painter, tmp_path):
    folder, learn = painter
    (tmp_path/'in').mkdir()
    odd = tmp_path/'in'/os.fsdecode(b'caf\xe9.png')
    odd.write_bytes((folder/'images'/'00.png').read_bytes())
    with pytest.raises(ValueError, match='ids that are text'): predict_folder(learn, tmp_path/'in', tmp_path/'s.csv')
    assert sorted(f.name for f in tmp_path.iterdir()) == ['in']
    assert len(predict_folder(learn, tmp_path/'in', tmp_path/'out')) == 1


# sizes, probabilities, tiles

def test_probabilities_and_cuts(masker, tmp_path):
    pictures = list(salt_sections(3, seed=4, size=40)[0])
    likely = predict_masks(masker, pictures, probs=True)
    assert all(p.dtype == torch.float32 and p.shape == (40, 40) and 0 <= p.min() and p.max() <= 1 for p in likely)
    for cut in (.2, .5, .9): assert all(torch.equal(m, p > cut) for m, p in zip(predict_masks(masker, pictures, cut=cut), likely))
    with pytest.raises(ValueError, match='cut must be a finite number in'): predict_masks(masker, pictures, cut=1.5)
    (tmp_path/'in').mkdir()
    for i, x in enumerate(pictures): Image.fromarray(x[0].numpy()).save(tmp_path/'in'/f'{i}.png')
    predict_folder(masker, tmp_path/'in', tmp_path/'out', probs=True)
    assert all(np.array_equal(np.load(tmp_path/'out'/f'{i}.npy'), likely[i]) for i in range(3))
    with pytest.raises(ValueError, match='dest must be a folder for probabilities'): predict_folder(masker, tmp_path/'in', tmp_path/'s.csv', probs=True)

def test_a_network_trained_on_scaled_images_scales_and_scales_back(tmp_path):
    folder = squares(tmp_path/'a')
    learn = fitted(masks(folder, bs=4, resize=64), Pixels(3), 12)
    found = predict_folder(learn, folder/'images')
    for name, mask in found.items():
        truth = read_mask(folder/'masks'/f'{name}.png')[0].bool()
        assert mask.shape == truth.shape and (mask == truth).float().mean() > .95
    one = (torch.tensor(np.array(Image.open(folder/'images'/'00.png'))).permute(2, 0, 1))
    assert torch.equal(predict_masks(learn, [one])[0], found['00'])

@pytest.mark.parametrize('levels, overlap', [(1, 32), (2, 64)])
def test_tiles_give_what_one_pass_gives(levels, overlap):
    torch.manual_seed(0)
    net = build(UNetConfig((1,)*(2*levels + 1), width=4, in_channels=2, out_channels=3)).double().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(), m.running_var.uniform_(.5, 2)
    for sides in ((150, 201), (97, 300), (64, 64)):
        x = torch.randn(2, 2, *sides, dtype=torch.double)
        with torch.no_grad():
            one = net(x)
            assert one.shape == (got := tiled(net, x, 2*overlap + 64, overlap)).shape and (got - one).abs().max() < 1e-12*one.abs().max()
            if max(sides) > 100: assert (tiled(net, x, 64, 0) - one).abs().max() > 1e-6      # seams, so the test can fail

@pytest.mark.parametrize('tile, overlap', [(96, 0), (96, 32), (64, 16), (160, 64), (32, 0)])
def test_spans_cover_a_side_once_on_the_grid(tile, overlap):
    for side in (16, 31, 32, 95, 96, 97, 150, 300):
        spans = tile_spans(side, tile, overlap)
        assert [i for _, _, a, b in spans for i in range(a, b)] == list(range(side))
        for k, (start, end, a, b) in enumerate(spans):
            assert start % 32 == 0 and end - start <= tile and start <= a < b <= end
            assert (start == a == 0 or a - start >= overlap) and (end == b == side or end - b >= overlap)

@pytest.mark.parametrize('tile, overlap, said', [(100, 0, 'a multiple of 32 above it, got tile=100, overlap=0'), (64, 32, 'got tile=64'), (64, -1, 'overlap must'), (2.5, 0, 'tile must')])
def test_tiles_off_the_grid_are_refused(tile, overlap, said):
    with pytest.raises((ValueError, TypeError), match=said): tile_spans(200, tile, overlap)

def test_a_large_image_in_tiles(masker):
    x = salt_sections(1, seed=2, size=200)[0][0]
    whole = predict_masks(masker, [x], probs=True)[0]
    torch.testing.assert_close(predict_masks(masker, [x], probs=True, tile=128, overlap=32)[0], whole, rtol=1e-4, atol=1e-5)


# weights

@pytest.mark.parametrize('kw', [dict(normalize='tile'), dict(normalize='set'), dict(resize=48), dict(channels=1, normalize='set')])
def test_weights_come_back_with_all_that_belongs_to_them(tmp_path, kw):
    folder = squares(tmp_path/'a')
    dls = masks(folder, bs=4, **(kw if 'resize' in kw else {'size': 32, **kw}))
    learn = fitted(dls, UNetConfig((1, 1, 1), width=4), 1)
    assert save_weights(learn, tmp_path/'w.safetensors') == tmp_path/'w.safetensors'
    loaded = load_weights(tmp_path/'w.safetensors')
    assert loaded.model.config == learn.model.config and loaded.reader == learn.dls.reader and not loaded.model.training
    ours, theirs = (predict_folder(p, folder/'images', probs=True) for p in (learn, loaded))
    for name in ours: torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)

def test_weights_of_a_network_from_elsewhere_need_their_module(painter, tmp_path):
    folder, learn = painter
    save_weights(learn, tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='model must be given, .*w.json holds weights of a network from elsewhere'): load_weights(tmp_path/'w.safetensors')
    loaded = load_weights(tmp_path/'w.safetensors', Pixels(3))
    assert torch.equal(predict_folder(loaded, folder/'images')['03'], predict_folder(learn, folder/'images')['03'])
    with pytest.raises(ValueError, match='w.safetensors does not hold the weights of this network'): load_weights(tmp_path/'w.safetensors', Pixels(1))

@pytest.mark.parametrize('spoil, said', [(lambda w, j: w.write_bytes(b'\x80\x04.'), 'does not hold the weights'), (lambda w, j: j.write_text('{'), 'w.json is no text of save_weights'),
                                         (lambda w, j: w.unlink(), 'w.safetensors must have a .json beside it, .*w.safetensors is missing'), (lambda w, j: j.unlink(), 'w.json is missing'),
                                         (lambda w, j: j.write_text(j.read_text().replace('"width"', '"breadth"')), 'w.json does not describe a UNetConfig: .*breadth'),
                                         (lambda w, j: j.write_text('[1]'), 'w.json must hold'), (lambda w, j: j.write_text(j.read_text().replace('UNetConfig', 'os.system')), "names a network 'os.system' that is not known")])
def test_damaged_weights_are_named(masker, tmp_path, spoil, said):
    save_weights(masker, tmp_path/'w.safetensors')
    spoil(tmp_path/'w.safetensors', tmp_path/'w.json')
    with pytest.raises((ValueError, FileNotFoundError), match=said): load_weights(tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='file must end in .safetensors'): save_weights(masker, tmp_path/'w.pth')

@pytest.mark.parametrize('key, value, said', [
    ('reader', {'x': 1}, 'does not say how images are read and scaled'), ('reader', [], 'does not say how'), ('channels', 'x', 'does not say how'),
    ('scaling', {'mean': [.1]}, 'does not say how'), ('scaling', {'x': 1}, 'does not say how'), ('scaling', {'tile': 'x'}, 'does not say how'),
    ('network', [1], 'names a network .* that is not known'), ('network', {'kind': [1]}, 'names a network .* that is not known'),
    ('network', {'kind': 'UNetConfig', 'blocks': [1, 1, 1], 'width': -1}, 'does not describe a UNetConfig: width must'),
    ('network', {'kind': 'UNetConfig', 'blocks': [[1]], 'width': 4}, 'does not describe a UNetConfig')])
def test_what_stands_beside_the_weights_is_named_where_it_cannot_be(masker, tmp_path, key, value, said):
    save_weights(masker, tmp_path/'w.safetensors')
    about = json.loads((tmp_path/'w.json').read_text())
    (tmp_path/'w.json').write_text(json.dumps(about | {key: value}))
    with pytest.raises(ValueError, match=f'w.json {said}'): load_weights(tmp_path/'w.safetensors')

def eager(probs): return probs > .2
def nearly(probs): return probs > .501
def even(logits): return (logits/2).sigmoid()

@pytest.mark.parametrize('classes, how', [(None, dict(decodes=eager)), (None, dict(decodes=nearly)), (None, dict(activation=even)),
                                          (3, dict(decodes=lambda p: p[:,1:].argmax(1))), (3, dict(activation=lambda x: x.softmax(-1)))])
def test_a_decision_that_the_file_cannot_hold_is_refused(masker, tmp_path, classes, how):
    p = dataclasses.replace(predictor(masker), classes=classes, **how)
    with pytest.raises(ValueError, match='learn must decide by one half, or by the largest class, to be saved'): save_weights(p, tmp_path/'w.safetensors')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('classes, loss', [(None, BCEWithLogitsLossFlat()), (None, LogitLoss(F.binary_cross_entropy_with_logits)), (3, CrossEntropyLossFlat(axis=1)),
                                           (3, LogitLoss(F.cross_entropy)), (3, ClassIoULoss()), (None, MixedLoss((IoULoss(), 1)))])
def test_losses_that_decide_as_usual_are_saved(masker, tmp_path, classes, loss):
    p = dataclasses.replace(predictor(masker), classes=classes, activation=loss.activation, decodes=loss.decodes)
    assert save_weights(p, tmp_path/'w.safetensors').exists()


# the whole way

def photos(folder, numbers):
    "JPEGs in colour of unequal sizes, some lying on their side; palette masks of three classes"
    for part in ('images', 'masks'): (folder/part).mkdir(parents=True)
    for i in numbers:
        h, w = 40 + i % 7*3, 72 - i % 5*4
        y = np.zeros((h, w), np.uint8); top, left = 3 + i % 9, 3 + i % 11
        y[top:top+24, left:left+24] = 1; y[top+6:top+18, left+6:left+18] = 2
        x = np.uint8([(40, 120, 60), (200, 60, 40), (60, 60, 200)])[y]
        exif = Image.Exif()
        if i % 4 == 3: exif[0x0112], x = 6, np.rot90(x).copy()
        Image.fromarray(x).save(folder/'images'/f'{i}.jpg', quality=95, exif=exif)
        save_mask(torch.tensor(y.astype(int)), folder/'masks'/f'{i}_mask.png')
    return folder

def test_from_a_folder_of_photographs_to_a_folder_of_masks(tmp_path, capsys):
    photos(tmp_path/'old', range(32)), photos(tmp_path/'new', range(50, 55))
    kw = dict(model='strict_unet48', epochs=8, resize=32, bs=2, mask_name='{}_mask', codes=['ground', 'square', 'core'])
    with no_random(): assert segment_command(tmp_path/'old', tmp_path/'run', **kw) == 0
    said = capsys.readouterr().out
    assert '26 images to learn from, 6 to judge by' in said and 'epoch 8/8 train_loss' in said
    assert predict_command(tmp_path/'run'/'weights.safetensors', tmp_path/'new'/'images', tmp_path/'out') == 0
    right = []
    for f in sorted((tmp_path/'new'/'masks').iterdir()):
        name = f.stem.removesuffix('_mask')
        mask, truth = read_mask(tmp_path/'out'/f'{name}.png', classes=3), read_mask(f, classes=3)
        assert mask.shape == truth.shape and Image.open(tmp_path/'out'/f'{name}.png').mode == 'P'
        right.append(mean_iou(confusion(mask, truth, 3)).item())
        blank = mean_iou(confusion(torch.zeros_like(mask), truth, 3)).item()
        assert blank < .3
    assert np.mean(right) > .6
    before = (tmp_path/'run'/'weights.safetensors').read_bytes()
    with no_random(): segment_command(tmp_path/'old', tmp_path/'run', **kw)      # nothing is left to do
    assert (tmp_path/'run'/'weights.safetensors').read_bytes() == before and 'epoch 1/' not in capsys.readouterr().out
    with pytest.raises(FileExistsError, match='overwrite=True'): predict_command(tmp_path/'run'/'weights.safetensors', tmp_path/'new'/'images', tmp_path/'out')
    with pytest.raises(ValueError, match='from another run'), no_random(): segment_command(tmp_path/'old', tmp_path/'run', **kw | dict(bs=4))

def test_both_commands_are_words_of_the_program(tmp_path, capsys):
    from resnotes.cli import main
    squares(tmp_path/'a', n=6)
    with no_random(): assert main('segment', [str(tmp_path/'a'), '--epochs', '1', '--size', '32', '--bs', '2', '--out', str(tmp_path/'run')]) == 0
    weights = str(tmp_path/'run'/'weights.safetensors')
    assert main('predict', [weights, str(tmp_path/'a'/'images'), '--dest', str(tmp_path/'s.csv')]) == 0
    assert (tmp_path/'s.csv').read_text().startswith('id,rle_mask\n00,')
    assert main('predict', [weights, str(tmp_path/'a'/'images'), '--dest', str(tmp_path/'a'/'masks')]) == 1
    assert 'is there (6 of 6); overwrite=True replaces them' in capsys.readouterr().err
    assert main('segment', [str(tmp_path/'nowhere')]) == 1 and 'path must be a folder of images and masks' in capsys.readouterr().err

@pytest.mark.parametrize('args, said', [(['--model', 'resnet20'], "model must be an nn.Module, or a U-Net by its name or its configuration, got 'resnet20'"),
                                        (['--epochs', '0'], 'epochs must be at least 1, got 0'), (['--lr', '-1', '--size', '32', '--bs', '2'], 'lr must be greater than 0, got -1.0')])
def test_arguments_that_train_nothing_are_refused_and_nothing_is_written(tmp_path, capsys, args, said):
    from resnotes.cli import main
    squares(tmp_path/'a', n=6)
    assert main('segment', [str(tmp_path/'a'), '--out', str(tmp_path/'run'), *args]) == 1
    assert said in capsys.readouterr().err and not (tmp_path/'run').exists()

def test_an_error_within_training_is_shown_as_text(tmp_path, capsys):
    from resnotes.cli import main
    squares(tmp_path/'a', n=6)
    run = ['segment', [str(tmp_path/'a'), '--size', '32', '--bs', '2', '--out', str(tmp_path/'run'), '--epochs', '1']]
    with no_random(): assert main(*run) == 0 and main(run[0], [*run[1], '--lr', '.2']) == 1
    said = capsys.readouterr().err
    assert 'is from another run: schedule.lr was' in said and '\N{REPLACEMENT CHARACTER}' not in said

def test_what_was_predicted_as_a_table_trains_again(tmp_path, capsys):
    from resnotes.cli import main
    squares(tmp_path/'a', n=6)
    run = ['--epochs', '1', '--size', '32', '--bs', '2', '--out', str(tmp_path/'run')]
    with no_random(): assert main('segment', [str(tmp_path/'a'), *run]) == 0
    assert main('predict', [str(tmp_path/'run'/'weights.safetensors'), str(tmp_path/'a'/'images'), '--dest', str(tmp_path/'a'/'s.csv')]) == 0
    found = predict_folder(load_weights(tmp_path/'run'/'weights.safetensors'), tmp_path/'a'/'images')
    for f, runs in mask_pairs(tmp_path/'a', runs='s.csv'): assert torch.equal(FileReader().pair(f, runs)[1][0].bool(), found[f.stem])
    shutil.rmtree(tmp_path/'a'/'masks')
    with no_random(): assert main('segment', [str(tmp_path/'a'), *run[:-1], str(tmp_path/'again'), '--runs', 's.csv', '--run-columns', 'id,rle_mask']) == 0
    assert (tmp_path/'again'/'weights.safetensors').exists()
    with no_random(): assert main('segment', [str(tmp_path/'a'), *run[:-1], str(tmp_path/'again'), '--runs', 's.csv']) == 1
    assert "settings.run_columns was ['id', 'rle_mask'] there and is None here" in capsys.readouterr().err

def test_the_commands_count_along_the_rows_where_that_is_said(tmp_path, capsys):
    from resnotes.cli import main
    from resnotes.salt import write_submission
    squares(tmp_path/'a', n=6)
    write_submission(tmp_path/'a'/'cars.csv', {f.stem: read_mask(f) for f in (tmp_path/'a'/'masks').iterdir()}, 'row')
    run = ['--epochs', '1', '--size', '32', '--bs', '2']
    with no_random():
        assert main('segment', [str(tmp_path/'a'), *run, '--out', str(tmp_path/'files')]) == 0
        assert main('segment', [str(tmp_path/'a'), *run, '--out', str(tmp_path/'table'), '--runs', 'cars.csv', '--run-order', 'row']) == 0
    weights = tmp_path/'table'/'weights.safetensors'
    assert weights.read_bytes() == (tmp_path/'files'/'weights.safetensors').read_bytes()      # trained on the same masks
    for order in ('column', 'row'):
        assert main('predict', [str(weights), str(tmp_path/'a'/'images'), '--dest', str(tmp_path/f'{order}.csv'), '--run-order', order]) == 0
    found = predict_folder(load_weights(weights), tmp_path/'a'/'images')
    from resnotes.data import read_runs
    from resnotes.images import RunLengths
    for order in ('column', 'row'):
        for name, rows in read_runs(tmp_path/f'{order}.csv').items(): assert torch.equal(RunLengths(None, rows, order).decode(found[name].shape)[0].bool(), found[name])
    assert main('predict', [str(weights), str(tmp_path/'a'/'images'), '--dest', str(tmp_path/'x.csv'), '--run-order', 'F']) == 1
    assert "run_order must be one of 'column', 'row', got 'F'" in capsys.readouterr().err and not (tmp_path/'x.csv').exists()


# three classes of real images

def with_borders(masks):
    "Background 0, border 1 (object pixels beside others), inside 2, of masks [N, 1, H, W]"
    return (masks + 1 - nn.functional.max_pool2d(1 - masks, 3, 1, 1)).long()

def nuclei_of_three_classes(folder, side=64):
    "Fluorescent tiles of the nuclei that hold some, and their classes as palette masks"
    for part, n in (('train', 200), ('valid', 40)):
        source, found = data_folder('nuclei')/part, 0
        for kind in ('images', 'masks'): (folder/part/kind).mkdir(parents=True)
        files = sorted((source/'masks').iterdir())
        for f in files[::len(files)//(2*n)]:
            mask = read_mask(f)
            if found == n or read_mask(f, side).float().mean() < .05 or read_image(source/'images'/f.name, side, 1).float().mean() > 100: continue
            shutil.copy(source/'images'/f.name, folder/part/'images'/f.name)
            save_mask(with_borders(mask[None].float())[0,0], folder/part/'masks'/f.name)
            found += 1
    return folder

@pytest.mark.skipif('RESNOTES_DATA' not in os.environ, reason='RESNOTES_DATA names no folder')
def test_three_classes_of_nuclei_are_learned(tmp_path):
    "Background, border and inside, against the best single class and against Otsu's threshold with the border of what it finds"
    dls = masks(nuclei_of_three_classes(tmp_path), size=64, bs=8, codes=['background', 'border', 'inside'])
    loss = MixedLoss((CrossEntropyMaskLoss(), 1.), (ClassIoULoss(), 1.))
    with no_random(0):
        learn = segmenter(dls, UNetConfig((1, 1, 1), width=8, skip='concat', convs=0, placement='blocks'), loss=loss, opt_func=Adam)
        init_layers(learn.model, 'glorot_normal')
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(12, .02)
    x, y = (plain(c) for c in dls.valid.columns)
    with learn.no_bar(): network = plain(learn.loss_func.decodes(learn.get_preds()[0]))
    guesses = {c: torch.full_like(y, i) for i, c in enumerate(dls.vocab)} | {'threshold': with_borders(otsu_masks(x).float())[:,0], 'network': network}
    scores = {name: mean_iou(confusion(guess.long(), y.long(), 3)).item() for name, guess in guesses.items()}
    print('mean IoU', {name: round(v, 3) for name, v in scores.items()})
    best = max(scores[c] for c in dls.vocab)
    assert best < .3 and scores['network'] > best + .35 and scores['network'] > scores['threshold']
