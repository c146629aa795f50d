"Readers of image files: orientation, pages, bits, colour, palettes, transparency, and what they refuse"
import os, shutil, warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from resnotes.data import masks, read_pairs
from resnotes.images import (FileReader, RunLengths, csv_rows, padded, read_image, read_mask, resized, rle_decode, rle_encode, save_mask,
                             voc_palette)
from resnotes.tiles import BinaryMask


# orientation

def show(a, orientation):
    "What a viewer shows of a stored array, as the EXIF standard defines the eight orientations"
    return {1: a, 2: np.fliplr(a), 3: np.rot90(a, 2), 4: np.flipud(a), 5: a.swapaxes(0, 1), 6: np.rot90(a, -1),
            7: np.rot90(np.fliplr(a), -1), 8: np.rot90(a)}[orientation]

def write_turned(a, orientation, file, **kwargs):
    exif = Image.Exif(); exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(a)).save(file, exif=exif, **kwargs)

@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ('png', 'tif', 'webp', 'jpg', 'deep.png', 'deep.tif'))
def test_images_come_out_upright(tmp_path, orientation, kind):
    a = np.kron(np.array([[0, 60, 120], [180, 240, 30]], np.uint8), np.ones((16,16), np.uint8))
    stored, file = a.astype(np.uint16)*257 if 'deep' in kind else a, tmp_path/f'x.{kind}'   # TIFF without compression too
    write_turned(stored, orientation, file, **({'lossless': True} if kind == 'webp' else {'quality': 98} if kind == 'jpg' else {}))
    got = read_image(file, channels=1)[0].numpy().astype(int)
    assert got.shape == show(a, orientation).shape and np.abs(got - show(a, orientation)).max() <= (4 if kind == 'jpg' else 0)

@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ('png', 'tif'))
def test_masks_come_out_upright_and_fit_images_turned_alike_or_not(tmp_path, orientation, kind):
    a = np.zeros((6, 9), np.uint8); a[0,0] = a[1,3:] = 255
    write_turned(a, orientation, tmp_path/f'm.{kind}')
    upright = show(a, orientation)
    assert np.array_equal(read_mask(tmp_path/f'm.{kind}')[0], upright > 0)
    Image.fromarray(upright).save(tmp_path/'drawn.png')        # drawn in a viewer, so without the number
    x, y = FileReader().pair(tmp_path/f'm.{kind}', tmp_path/'drawn.png')
    assert torch.equal(x > 0, y > 0)
    write_turned(a//255*2, orientation, tmp_path/f'c.{kind}')
    assert np.array_equal(read_mask(tmp_path/f'c.{kind}', classes=3)[0], upright//255*2)

def test_sizes_that_differ_by_a_turn_say_so(tmp_path):
    a = np.zeros((6, 9), np.uint8)
    write_turned(a, 6, tmp_path/'x.png'), Image.fromarray(a).save(tmp_path/'y.png')
    with pytest.raises(ValueError, match='y.png is 6x9, its image .*x.png is 9x6; is the orientation in the metadata'): FileReader().pair(tmp_path/'x.png', tmp_path/'y.png')


# pages

@pytest.mark.parametrize('kind', ('tif', 'gif', 'png', 'webp'))
def test_files_of_several_pages_are_refused_with_their_number(tmp_path, kind):
    pages = [Image.fromarray(np.full((8,8), v, np.uint8)) for v in (0, 120, 240)]
    file = tmp_path/f'x.{kind}'
    pages[0].save(file, save_all=True, append_images=pages[1:], **({'lossless': True} if kind == 'webp' else {}))
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=f'x.{kind} is not a readable image: it has 3 pages; page= takes one, from 0 to 2'): read(file)
    assert [int(read_image(file, page=k, channels=1).max()) for k in range(3)] == [0, 120, 240]
    with pytest.raises(ValueError, match='page must be below 3, the number of its pages, got 3'): read_image(file, page=3)
    with pytest.raises(ValueError, match='page must be at least 0'): read_image(file, page=-1)

def test_what_a_phone_hides_behind_a_photograph_is_no_page(tmp_path):
    pages = [Image.fromarray(np.full((16,16,3), v, np.uint8)) for v in (50, 200)]
    pages[0].save(tmp_path/'x.jpg', format='MPO', save_all=True, append_images=pages[1:])
    assert Image.open(tmp_path/'x.jpg').n_frames == 2 and abs(int(read_image(tmp_path/'x.jpg').max()) - 50) < 3


# bits, colour

def test_sixteen_bit_images_keep_their_range(tmp_path):
    x = np.array([[0, 257, 65535], [128*257, 1000, 64]], np.uint16)
    Image.fromarray(x).save(tmp_path/'x.png')
    assert read_image(tmp_path/'x.png')[0].tolist() == np.rint(x/257).astype(int).tolist()
    Image.fromarray(np.array([[0, 1]], bool)).save(tmp_path/'b.png')
    assert read_image(tmp_path/'b.png')[0].tolist() == [[0, 255]]

def test_colour_becomes_luminance_and_transparency_is_dropped(tmp_path):
    x = np.zeros((1,3,3), np.uint8); x[0,0,0] = x[0,1,1] = x[0,2,2] = 255
    Image.fromarray(x).save(tmp_path/'c.png')
    assert read_image(tmp_path/'c.png', channels=1)[0].tolist() == [[76, 150, 29]]
    assert torch.equal(read_image(tmp_path/'c.png'), torch.tensor(x).permute(2,0,1))
    Image.fromarray(np.dstack([np.full((2,2,3), 90, np.uint8), np.zeros((2,2), np.uint8)])).save(tmp_path/'a.png')
    assert (read_image(tmp_path/'a.png') == 90).all()
    Image.fromarray(np.dstack([np.full((2,2), 90, np.uint8)]*2), 'LA').save(tmp_path/'la.png')
    assert (read_image(tmp_path/'la.png') == 90).all()

def test_masks_all_one_and_all_zero_are_masks(tmp_path):
    for v in (0, 1, 255):
        Image.fromarray(np.full((3,3), v, np.uint8)).save(tmp_path/f'{v}.png')
        assert read_mask(tmp_path/f'{v}.png').float().mean() == (v > 0)


@pytest.mark.parametrize('bits', (9, 10, 12, 14, 16))
def test_a_full_range_of_bits_becomes_all_levels(tmp_path, bits):
    full = 2**bits - 1
    x = np.linspace(0, full, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(x).save(tmp_path/'x.png')
    assert np.array_equal(read_image(tmp_path/'x.png', bits=bits)[0], np.rint(x.astype(float)/full*255))
    assert len(read_image(tmp_path/'x.png', bits=bits).unique()) == 256

def test_twelve_bits_in_sixteen_are_no_seventeen_levels_unawares(tmp_path):
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path/'x.png')
    with pytest.raises(ValueError, match='x.png is not a readable image: its 16 bits go up to 4095 only: bits=12 reads'): read_image(tmp_path/'x.png')
    assert len(read_image(tmp_path/'x.png', bits=16).unique()) == 17
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path/'black.png')
    assert read_image(tmp_path/'black.png').max() == 0
    with pytest.raises(ValueError, match='whole numbers from 0 to 4095, allowed are 0 to 1023'): read_image(tmp_path/'x.png', bits=10)
    with pytest.raises(ValueError, match='bits must be one of 8, 9'): read_image(tmp_path/'x.png', bits=20)

@pytest.mark.parametrize('values, said', [([-1, 5], 'whole numbers from -1 to 5'), ([0, 70000], 'whole numbers from 0 to 70000')])
def test_numbers_that_no_grey_level_holds_are_refused(tmp_path, values, said):
    Image.fromarray(np.array([values], np.int32)).save(tmp_path/'x.tif')
    with pytest.raises(ValueError, match=f'x.tif is not a readable image: it holds {said}'): read_image(tmp_path/'x.tif')

def test_channels_are_those_of_the_content(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(np.dstack([grey]*3)).save(tmp_path/'stored.png')
    assert torch.equal(read_image(tmp_path/'stored.png')[0], torch.tensor(grey)) and len(read_image(tmp_path/'stored.png')) == 1
    assert torch.equal(read_image(tmp_path/'stored.png', channels=3), torch.tensor(grey).expand(3, 8, 8))
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    for name, im in dict(rgb=Image.fromarray(colour), rgba=Image.fromarray(np.dstack([colour, grey]))).items():
        im.save(tmp_path/f'{name}.png')
        assert torch.equal(read_image(tmp_path/f'{name}.png'), torch.tensor(colour).permute(2, 0, 1))
    Image.fromarray(colour).convert('CMYK').save(tmp_path/'cmyk.tif')
    assert (read_image(tmp_path/'cmyk.tif').int() - torch.tensor(colour).permute(2, 0, 1).int()).abs().max() <= 2
    Image.fromarray(colour//64*64).quantize(64).save(tmp_path/'p.png', transparency=bytes(range(64)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(read_image(tmp_path/'p.png'), torch.tensor(colour//64*64).permute(2, 0, 1))
    with pytest.raises(ValueError, match='channels must be one of None, 1, 3, got 4'): read_image(tmp_path/'rgb.png', channels=4)

def test_a_folder_with_one_picture_in_colour_is_one_in_colour(tmp_path):
    for part in ('images', 'masks'): (tmp_path/part).mkdir()
    for i in range(4):
        x = np.full((6, 6, 3), 10*i, np.uint8); x[:3] = (200, 0, 0) if i == 2 else 90
        Image.fromarray(x).save(tmp_path/'images'/f'{i}.png'), save_mask(torch.eye(6).bool(), tmp_path/'masks'/f'{i}.png')
    dls = masks(tmp_path, bs=1, valid=.5)
    assert dls.reader.found == 3 and dls.one_batch()[0].shape == (1, 3, 6, 6)
    assert masks(tmp_path, bs=1, valid=.5, channels=1).one_batch()[0].shape == (1, 1, 6, 6)
    (tmp_path/'images'/'2.png').unlink(), (tmp_path/'masks'/'2.png').unlink()
    grey = masks(tmp_path, bs=1, valid=.5)
    Image.fromarray(x[..., ::-1].copy()).save(tmp_path/'new.png')
    assert grey.reader.found == 1 and len(grey.reader.image(tmp_path/'new.png')) == 1
    x[0,0] = (1, 2, 3); Image.fromarray(x).save(tmp_path/'new.png')
    with pytest.raises(ValueError, match='new.png is in colour, the others are grey; channels=1 takes'): grey.test_dl([tmp_path/'new.png']).one_batch()


# masks

def rgba(colour, alpha): return np.dstack([np.broadcast_to(np.uint8(colour), (*alpha.shape, 3)), alpha])

disc = np.uint8(255)*(np.hypot(*(np.indices((12, 15)) - 6)) < 4)

@pytest.mark.parametrize('colour', [(255, 255, 255), (0, 0, 0), (200, 30, 10)])
def test_a_cut_out_is_its_opaque_part(tmp_path, colour):
    Image.fromarray(rgba(colour, disc)).save(tmp_path/'m.png')
    assert np.array_equal(read_mask(tmp_path/'m.png')[0], disc > 0)
    Image.fromarray(rgba(colour, 0*disc)).save(tmp_path/'none.png')
    assert not read_mask(tmp_path/'none.png').any()

def test_transparency_in_all_its_forms(tmp_path):
    forms = {'LA.png': Image.fromarray(np.dstack([255 + 0*disc, disc]), 'LA'), 'LA0.png': Image.fromarray(np.dstack([0*disc, disc]), 'LA')}
    drawn = rgba((0, 0, 0), disc); drawn[disc > 0, :3] = (250, 10, 10)
    forms['drawn.png'] = Image.fromarray(drawn)
    index = Image.fromarray((disc > 0).astype(np.uint8), 'P')
    for name, colours in dict(white=[255]*6, black=[0]*6, redness=[0, 0, 0, 250, 10, 10]).items():
        p = index.copy(); p.putpalette(colours)
        p.save(tmp_path/f'P{name}.png', transparency=0)
        forms[f'P{name}.png'] = None
    for name, im in forms.items():
        if im is not None: im.save(tmp_path/name)
        assert np.array_equal(read_mask(tmp_path/name)[0], disc > 0), name

def test_opaque_files_are_read_by_their_colours(tmp_path):
    opaque = 255 + 0*disc
    Image.fromarray(np.dstack([disc, disc, disc, opaque])).save(tmp_path/'m.png')
    assert np.array_equal(read_mask(tmp_path/'m.png')[0], disc > 0)
    Image.fromarray(rgba((0, 0, 0), opaque)).save(tmp_path/'black.png')
    assert not read_mask(tmp_path/'black.png').any()

def test_two_masks_in_one_file_are_refused(tmp_path):
    other = np.ascontiguousarray(disc[::-1, ::-1])
    Image.fromarray(np.dstack([other, other, other, disc])).save(tmp_path/'m.png')
    with pytest.raises(ValueError, match='m.png is not a readable image: its colours draw one mask and its transparency another'): read_mask(tmp_path/'m.png')
    Image.fromarray(rgba((255, 255, 255), disc//2)).save(tmp_path/'h.png')
    with pytest.raises(ValueError, match='half transparent'): read_mask(tmp_path/'h.png')
    classes = Image.fromarray(np.uint8([[0, 1], [2, 1]]), 'P'); classes.putpalette(voc_palette().tobytes())
    classes.save(tmp_path/'c.png', transparency=1)
    with pytest.raises(ValueError, match='pixels of some class are transparent'): read_mask(tmp_path/'c.png', classes=3)
    classes.save(tmp_path/'c.png', transparency=0)
    assert read_mask(tmp_path/'c.png', classes=3)[0].tolist() == [[0, 1], [2, 1]]

def palette_file(file, values, colours):
    im = Image.fromarray(np.uint8(values), 'P'); im.putpalette([v for c in colours for v in c]); im.save(file)

def test_palettes_are_read_by_index_unless_they_are_grey(tmp_path):
    palette_file(tmp_path/'red.png', [[0, 1]], [(0, 0, 0), (200, 0, 0)])
    palette_file(tmp_path/'turned.gif', [[0, 1]], [(255, 255, 255), (0, 0, 0)])     # white first, as a drawing may be
    assert read_mask(tmp_path/'red.png').tolist() == [[[0, 1]]] and read_mask(tmp_path/'turned.gif').tolist() == [[[1, 0]]]
    values = np.arange(21).reshape(3, 7)
    palette_file(tmp_path/'voc.png', values, voc_palette().tolist())
    assert np.array_equal(read_mask(tmp_path/'voc.png', classes=21)[0], values)
    palette_file(tmp_path/'greys.png', values % 3, [(0, 0, 0), (128, 128, 128), (255, 255, 255)])
    assert np.array_equal(read_mask(tmp_path/'greys.png', classes=3)[0], values % 3)
    with pytest.raises(ValueError, match='must hold classes 0 to 19, got 21 values from 0 to 20'): read_mask(tmp_path/'voc.png', classes=20)

def test_pixels_that_count_for_no_class_must_be_allowed(tmp_path):
    Image.fromarray(np.uint8([[0, 1, 255]])).save(tmp_path/'m.png')
    assert read_mask(tmp_path/'m.png', classes=2, ignore=255).tolist() == [[[0, 1, 255]]]
    with pytest.raises(ValueError, match='must hold classes 0 to 1, and 7 to be ignored, got 3 values from 0 to 255'): read_mask(tmp_path/'m.png', classes=2, ignore=7)
    with pytest.raises(ValueError, match='ignore must come with classes'): FileReader(ignore=255)
    Image.fromarray(np.uint8([[[0, 1, 2]]])).save(tmp_path/'rgb.png')
    with pytest.raises(ValueError, match='rgb.png is not a readable image: it holds colours'): read_mask(tmp_path/'rgb.png', classes=3)

@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_what_is_saved_is_read_back(tmp_path_factory, a):
    file = tmp_path_factory.getbasetemp()/'saved.png'
    save_mask(torch.tensor(a), file)
    assert np.array_equal(read_mask(file, classes=256)[0], a)
    save_mask(torch.tensor(a > 99), file)
    assert np.array_equal(read_mask(file)[0], a > 99)

@pytest.mark.parametrize('table, want', [([0]*3 + [1]*3 + [2]*3, [0, 1, 2]), ([2]*3 + [0]*3 + [1]*3, [2, 0, 1]),   # greys that are classes
                                         ([0]*3 + [127]*3 + [255]*3, [0, 1, 2]),                                     # greys that are none
                                         ([0]*3 + [1]*3 + [2]*3 + [9, 0, 0], [0, 1, 2]), ([2]*3 + [1]*3 + [0]*3 + [9, 0, 0], [0, 1, 2])])   # a colour, not used
def test_a_palette_of_classes(tmp_path, table, want):
    im = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'P')
    im.putpalette(table)
    im.save(tmp_path/'a.png')
    assert read_mask(tmp_path/'a.png', classes=3)[0, 0].tolist() == want

def test_a_link_is_replaced_and_not_followed(tmp_path):
    Image.fromarray(disc).save(tmp_path/'source.png')
    before = (tmp_path/'source.png').read_bytes()
    (tmp_path/'m.png').symlink_to(tmp_path/'source.png')
    save_mask(torch.ones(3, 3).bool(), tmp_path/'m.png')
    assert (tmp_path/'source.png').read_bytes() == before and not (tmp_path/'m.png').is_symlink() and read_mask(tmp_path/'m.png').all()
    with pytest.raises(ValueError, match=r'mask must be \[H, W\] of bool or whole numbers, got torch.float32'): save_mask(torch.ones(3, 3), tmp_path/'m.png')

@pytest.mark.parametrize('values, said', [([[300, -1, 2]], 'mask must hold 0 to 255, got -1 to 300'), ([[0, 256]], 'got 0 to 256'), ([[-1, 0]], 'got -1 to 0')])
def test_numbers_that_no_byte_holds_are_not_saved(tmp_path, values, said):
    with pytest.raises(ValueError, match=said): save_mask(torch.tensor(values), tmp_path/'m.png')
    with pytest.raises(ValueError, match=said): save_mask(np.array(values, np.int16), tmp_path/'m.png')
    with pytest.raises(ValueError, match=r'of bool or whole numbers, got torch.uint8 \[0, 4\]'): save_mask(np.zeros((0, 4), np.uint8), tmp_path/'m.png')
    assert not list(tmp_path.iterdir())

def test_palette_is_that_of_pascal_voc():
    assert voc_palette()[:22].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128],
        [64, 0, 0], [192, 0, 0], [64, 128, 0], [192, 128, 0], [64, 0, 128], [192, 0, 128], [64, 128, 128], [192, 128, 128],
        [0, 64, 0], [128, 64, 0], [0, 192, 0], [128, 192, 0], [0, 64, 128], [128, 64, 128]]
    assert len({tuple(c) for c in voc_palette().tolist()}) == 256


# sizes

def test_masks_are_scaled_without_new_values():
    classes = torch.tensor([[0, 2], [4, 2]], dtype=torch.uint8).repeat_interleave(5, 0).repeat_interleave(5, 1)[None]
    for size in (3, 7, (20, 11)): assert set(resized(classes, size, mask=True).unique().tolist()) == {0, 2, 4}
    assert torch.equal(resized(resized(classes, 40, mask=True), 10, mask=True), classes)

@pytest.mark.parametrize('size', (10, 23, 40, (9, 31)))
def test_padding_reflects_however_far(size):
    x = torch.arange(2*9*10, dtype=torch.uint8).reshape(2, 9, 10)
    h, w = size if isinstance(size, tuple) else (size, size)
    def reflect(i, side):
        period = 2*(side - 1)
        i = np.abs(i) % period
        return np.where(i >= side, period - i, i)
    rows, columns = reflect(np.arange(h) - (h - 9)//2, 9), reflect(np.arange(w) - (w - 10)//2, 10)
    assert np.array_equal(padded(x, size), x.numpy()[:, rows][:, :, columns])

@pytest.mark.parametrize('kw', [dict(size=4, pad=8), dict(resize=4, pad=8), dict(size=3, resize=9)])
def test_one_way_to_one_size(kw):
    with pytest.raises(ValueError, match='size, resize and pad exclude each other'): FileReader(**kw)


# files that are none

def test_a_picture_with_too_many_pixels_is_named_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((300, 300), np.uint8)).save(tmp_path/'huge.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match='huge.png is not a readable image: Image size .90000 pixels. exceeds limit'): read(tmp_path/'huge.png')

def test_a_program_in_disguise_is_not_started(tmp_path):
    (tmp_path/'x.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    with pytest.raises(ValueError, match='x.png is not a readable image: cannot identify'): read_image(tmp_path/'x.png')

def test_a_link_to_itself_is_named(tmp_path):
    (tmp_path/'x.png').symlink_to(tmp_path/'x.png')
    with pytest.raises(ValueError, match='x.png is not a readable image'): read_image(tmp_path/'x.png')
    with pytest.raises(FileNotFoundError, match='nowhere'): read_image(tmp_path/'nowhere.png')


# run lengths

binary = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))

@settings(max_examples=150, deadline=None)
@given(binary)
def test_run_lengths_come_back(mask):
    text = rle_encode(mask)
    assert np.array_equal(rle_decode(text, mask.shape).numpy(), mask)
    runs = np.array(text.split(), int).reshape(-1, 2)
    assert set(np.concatenate([np.arange(a, a + n) for a, n in runs] or [[]])) == {1 + i for i, v in enumerate(mask.T.ravel()) if v}
    assert (runs[1:,0] > runs[:-1].sum(1)).all()   # sorted, and runs that touch are one run

def pixels_of(text, shape, order):
    "The mask of run lengths, by going through its pixels one by one as the order says"
    h, w = shape
    walk = [(r, c) for r in range(h) for c in range(w)] if order == 'row' else [(r, c) for c in range(w) for r in range(h)]
    numbers, mask = [int(word) for word in text.split()], np.zeros(shape, np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2]):
        for pixel in walk[start-1:start-1+length]: mask[pixel] = 1
    return mask

@settings(max_examples=100, deadline=None)
@given(binary, st.sampled_from(['column', 'row']))
def test_pixels_are_counted_down_the_columns_or_along_the_rows(mask, order):
    text = rle_encode(mask, order)
    assert np.array_equal(pixels_of(text, mask.shape, order), mask)
    assert np.array_equal(rle_decode(text, mask.shape, order=order).numpy(), mask)

def test_the_orders_differ_and_have_names():
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]])
    assert (rle_encode(mask), rle_encode(mask, 'row')) == ('3 3', '2 2 5 1')
    assert rle_decode('2 2 5 1', (2, 3), order='row').tolist() == mask.tolist() != rle_decode('2 2 5 1', (2, 3)).tolist()
    for call in (lambda: rle_encode(mask, 'F'), lambda: rle_decode('1 1', (2, 3), order='F')):
        with pytest.raises(ValueError, match="order must be one of 'column', 'row', got 'F'"): call()
    assert RunLengths('a.png', (('row 2', '2 2'), ('row 3', '5 1')), 'row').decode((2, 3))[0].tolist() == mask.tolist()

def test_run_lengths_of_any_mask_type():
    m = torch.tensor([[0,1],[1,1]])
    for form in (m, m.bool(), m.float(), m[None], m.numpy(), BinaryMask(m[None].float()), m.T.contiguous().T):
        assert rle_encode(form) == '2 3'
    assert rle_encode(torch.zeros(3,3)) == '' and rle_encode(torch.ones(101,101)) == f'1 {101*101}'
    for bad in (m*255, m[None].repeat(2,1,1), m[0]):
        with pytest.raises(ValueError, match='mask'): rle_encode(bad)

@pytest.mark.parametrize('text', (None, float('nan'), 12))
def test_run_lengths_that_are_no_text_are_refused(text):
    with pytest.raises(TypeError, match="must be text, '' for an empty mask"): rle_decode(text, (2,2))

def test_leading_zeros_are_no_longer_numbers(): assert rle_decode('0000001 00000002', (2, 2)).tolist() == [[1, 0], [1, 0]]

def test_rows_of_a_table_are_objects_of_one_mask(tmp_path):
    (tmp_path/'t.csv').write_text('id,rle\na,1 2\na,6 1\n')
    rows = [(f'row {i}', text) for i, (_, text) in csv_rows(tmp_path/'t.csv') if i > 1]
    runs = RunLengths(tmp_path/'a.png', tuple(rows))
    assert runs.decode((2, 3)).tolist() == [[[1, 0, 0], [1, 0, 1]]] and str(runs) == 'row 2'
    with pytest.raises(ValueError, match='row 3 must be sorted runs within 1 to 4'): runs.decode((2, 2))

def test_classes_that_a_byte_cannot_hold_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 299], [256, 1]], np.uint16)).save(tmp_path/'m.png')
    with pytest.raises(ValueError, match='classes must be at most 256, got 300'): read_mask(tmp_path/'m.png', classes=300)
    with pytest.raises(ValueError, match='ignore must be at most 255, got 65535'): read_mask(tmp_path/'m.png', classes=9, ignore=65535)

def test_a_mask_whose_bytes_are_in_the_other_order(tmp_path):
    Image.fromarray(np.array([[0, 1], [2, 1]], '>u2')).save(tmp_path/'m.tif')
    assert read_mask(tmp_path/'m.tif', classes=3).tolist() == [[[0, 1], [2, 1]]]

@pytest.mark.parametrize('kw', [dict(resize=0), dict(pad=0), dict(size=0), dict(resize=(3, 0))])
def test_no_side_is_zero(kw):
    with pytest.raises(ValueError, match='size must be at least 1, got 0'): FileReader(**kw)

def test_a_mask_has_no_imaginary_part(tmp_path):
    with pytest.raises(ValueError, match='mask must be .H, W. of bool or whole numbers, got torch.complex64'): save_mask(torch.ones(2, 2, dtype=torch.complex64), tmp_path/'m.png')
