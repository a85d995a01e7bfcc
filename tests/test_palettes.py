"""How mask files are read and written: every mode, what is refused, and that what is written is read back equal."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pellucid.data.sources import load_dataset
from pellucid.errors import DataError
from pellucid.palettes import IGNORED, MaskFormat, codes_of, coloured, matched, palette_of, tally
from pellucid.recipe import DataSection

RED, GREEN, VOID = 0xFF0000, 0x00FF00, 0
GREY = MaskFormat("L", [0, 1, 7], [9])
COLOURS = MaskFormat("RGB", [RED, GREEN], [VOID])
INDICES = MaskFormat("P", [0, 1, 2], [5], palette=[10, 20, 30, 40, 50, 60, 70, 80, 90])


def file_of(pixels, kind="PNG", mode=None, palette=None, **options):
    image = Image.fromarray(np.asarray(pixels, np.uint8), mode=None) if mode is None else Image.new(mode, (3, 2))
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def fault(function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    return str(caught.value)


@pytest.mark.parametrize("layout", [GREY, COLOURS, INDICES])
def test_what_is_written_is_read_back_equal(layout):
    mask = np.random.default_rng(1).choice(np.array([*range(len(layout.codes)), IGNORED], np.uint8), (20, 30))
    data = layout.write(mask)
    assert Image.open(io.BytesIO(data)).mode == layout.mode
    read = layout.read(data, "x.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)


def test_a_written_palette_is_the_one_of_the_masks():
    assert palette_of(INDICES.write(np.zeros((2, 2), np.uint8)), "x.png")[:9] == INDICES.palette


def test_ignored_pixels_need_a_code_to_be_written():
    assert "no code for them" in fault(MaskFormat("L", [0, 1]).write, np.full((2, 2), IGNORED, np.uint8))


@pytest.mark.parametrize("layout", [GREY, COLOURS])
def test_codes_become_classes_as_a_dictionary_says(layout):
    table = {code: i for i, code in enumerate(layout.codes)} | dict.fromkeys(layout.ignored, IGNORED)
    codes = np.random.default_rng(2).choice(np.array([*table, 3, 200]), (15, 40))
    assert layout.indices(codes).tolist() == [[table.get(code, -1) for code in row] for row in codes.tolist()]


def test_unknown_value_is_named_with_its_count():
    pixels = [[0, 1, 7, 9, 4, 4, 200]]
    assert fault(GREY.read, file_of(pixels), "a.png") == "a.png: 2 values that are no class, on 3 of 7 pixels: 4 (2 pixels), 200 (1 pixels)"


def test_unknown_colour_is_named_with_its_count():
    pixels = [[[255, 0, 0], [254, 0, 0], [0, 255, 0], [0, 0, 0]]]
    assert fault(COLOURS.read, file_of(pixels), "a.png") == "a.png: 1 colour that is no class, on 1 of 4 pixels: [254, 0, 0] (1 pixels)"


def test_of_many_unknown_values_the_most_frequent_are_listed():
    pixels = np.repeat(np.arange(20, 40), np.arange(1, 21))[None]
    message = fault(GREY.read, file_of(pixels), "a.png")
    assert "20 values that are no class, on 210 of 210 pixels: 39 (20 pixels), 38 (19 pixels)" in message
    assert message.endswith("32 (13 pixels) and 12 more")


def test_threshold_makes_each_channel_all_or_nothing():
    pixels = [[[128, 127, 3], [255, 250, 0], [1, 128, 127], [9, 9, 9]]]
    assert codes_of(file_of(pixels), "a.png", 128)[1].tolist() == [[0xFF0000, 0xFFFF00, 0x00FF00, 0]]
    assert MaskFormat("RGB", [RED, GREEN, 0xFFFF00], [VOID], 128).read(file_of(pixels), "a.png").tolist() == [[0, 2, 1, IGNORED]]


@pytest.mark.parametrize("threshold", [None, 128])
def test_a_tally_counts_as_a_loop_does(threshold):
    pixels = np.random.default_rng(3).choice(np.array([0, 90, 200], np.uint8), (9, 11, 3))
    counts = {}
    for r, g, b in pixels.reshape(-1, 3).tolist():
        if threshold is not None:
            r, g, b = ((0, 255)[value >= threshold] for value in (r, g, b))
        counts[r * 65536 + g * 256 + b] = counts.get(r * 65536 + g * 256 + b, 0) + 1
    found = tally(file_of(pixels), "a.png", threshold)
    assert (found.mode, found.height, found.width) == ("RGB", 9, 11)
    assert list(zip(found.codes, found.counts, strict=True)) == sorted(counts.items())


def test_a_tally_of_indices_has_their_colours():
    found = tally(file_of([[0, 2, 2], [3, 0, 2]], palette=[1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 0, 1]), "a.png")
    assert (found.mode, found.codes, found.counts) == ("P", [0, 2, 3], [2, 3, 1])
    assert found.colours == [0x010203, 0x070809, 0xFF0001]


def test_one_bit_masks_are_black_and_white():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1").save(buffer, "PNG")
    assert tally(buffer.getvalue(), "a.png").codes == [0, 255]
    assert MaskFormat("L", [0, 255]).read(buffer.getvalue(), "a.png").tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("codes", [[0, 255], [255, 0]])
def test_one_bit_masks_are_written_with_one_bit_and_read_back_equal(codes):
    mask = np.random.default_rng(4).integers(0, 2, (19, 31)).astype(np.uint8)
    layout = MaskFormat("1", codes)
    data = layout.write(mask)
    assert Image.open(io.BytesIO(data)).mode == "1"
    np.testing.assert_array_equal(layout.read(data, "x.png"), mask)
    assert tally(data, "x.png").mode == "1"
    assert codes_of(data, "x.png")[1].tolist() == np.where(mask == codes.index(255), 255, 0).tolist()
    assert fault(COLOURS.read, data, "x.png") == "x.png: expected a mask of colours (RGB), got one of one bit"


def test_codes_that_one_bit_cannot_hold_are_written_as_grey():
    """The first mask of a set has one bit, others are grey; or 1 bit holds one class and what is ignored is a value of its own."""
    mask = np.array([[0, 1, 2, IGNORED]], np.uint8)
    data = MaskFormat("1", [0, 255, 7], [9]).write(mask)
    assert Image.open(io.BytesIO(data)).mode == "L"
    np.testing.assert_array_equal(MaskFormat("1", [0, 255, 7], [9]).read(data, "x.png"), mask)
    ignored = MaskFormat("1", [0], [255]).write(np.array([[0, IGNORED]], np.uint8))
    assert Image.open(io.BytesIO(ignored)).mode == "1"
    assert MaskFormat("1", [0], [255]).read(ignored, "x.png").tolist() == [[0, IGNORED]]


def test_masks_are_written_as_the_training_masks_of_one_bit_are(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train_masks").mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), (9, 9, ord(name))).save(tmp_path / "train" / f"{name}.png")
        Image.fromarray(np.arange(24).reshape(4, 6) % 5 > 2).save(tmp_path / "train_masks" / f"{name}.png")
    section = DataSection.model_validate({"source": "pairs", "train": str(tmp_path / "train"), "palette": {"no": 0, "yes": 255}, "image_size": 4})
    dataset = load_dataset(section, seed=1, masks=True)
    mask = dataset.splits["train"].masks.open(0)
    with Image.open(io.BytesIO(dataset.mask_format.write(mask))) as written, Image.open(tmp_path / "train_masks" / "a.png") as drawn:
        assert (written.mode, written.tobytes()) == ("1", drawn.tobytes())


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of([[0, 1]], exif=exif)


def turned_by_xmp():
    noted = PngImagePlugin.PngInfo()
    noted.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="8"/>')
    return file_of([[0, 1]], pnginfo=noted)


def pages():
    buffer = io.BytesIO()
    Image.new("L", (3, 2)).save(buffer, "TIFF", save_all=True, append_images=[Image.new("L", (3, 2), 1)])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (file_of(0, mode="I;16"), "expected a mask with 8 bits a channel (modes 1, L, P, RGB), got mode I;16"),
        (file_of(0, mode="LA"), "got mode LA"),
        (file_of(0, mode="RGBA"), "the mask has transparent pixels"),
        (pages(), "expected one picture, got 2 frames or pages"),
        (turned(), "turned by its EXIF orientation 6; save it upright"),
        (turned_by_xmp(), "turned by its EXIF orientation 8; save it upright"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be read as a mask"),
        (file_of(np.zeros((40, 40)))[:40], "cannot be read as a mask"),
    ],
)
def test_what_has_no_one_meaning_is_no_mask(data, said):
    assert said in fault(tally, data, "a.png")
    assert fault(codes_of, data, "a.png").startswith("a.png: ")


def test_masks_beyond_the_limit_of_pixels_are_refused(monkeypatch):
    data = file_of(np.zeros((10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with pytest.warns(Image.DecompressionBombWarning):
        assert "10 x 10 pixels, the limit is 99" in fault(tally, data, "a.png")


def test_a_mask_of_another_kind_is_named():
    assert fault(COLOURS.read, file_of([[0]]), "a.png") == "a.png: expected a mask of colours (RGB), got one of grey values"


@pytest.mark.parametrize(
    ("stem", "pattern", "common"),
    [("0001_sat", "{}_sat", "0001"), ("_sat", "{}_sat", None), ("0001", "{}_sat", None), ("a", "{}", "a"), ("m_a_x", "m_{}_x", "a"), ("ab", "ab{}b", None)],
)
def test_patterns_match_whole_names(stem, pattern, common):
    assert matched(stem, pattern) == common


def test_the_mask_of_an_image_is_named_by_the_patterns():
    layout = MaskFormat("L", [0, 1], names=("{}_sat", "{}_mask"))
    assert layout.file_of("north/0001_sat.jpg") == "north/0001_mask.png"
    assert layout.file_of("north/other.jpg") == "north/other.png"


def test_pictures_of_masks_have_the_masks_own_colours():
    assert COLOURS.colours.tolist() == [[255, 0, 0], [0, 255, 0]]
    assert INDICES.colours.tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    picture = coloured(np.array([[0, 1, IGNORED]], np.uint8), COLOURS.colours, (1, 2, 3))
    assert picture.tolist() == [[[255, 0, 0], [0, 255, 0], [1, 2, 3]]]


def test_classes_without_colours_of_their_own_get_distinct_ones():
    colours = MaskFormat("L", list(range(40))).colours
    assert len(np.unique(colours, axis=0)) == 40
