"""Image files of every odd kind, made here, against what is said about them and what they become."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from pellucid.data.images import FATAL, as_rgb, decode, findings, resize
from pellucid.errors import DataError


def picture(height=20, width=30, seed=0):
    """A smooth RGB picture that JPEG keeps nearly as it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 200 // height, columns * 200 // width, (rows + columns + seed) % 64], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kinds(data, name):
    return [finding.kind for finding in findings(data, name)]


@pytest.mark.parametrize(("kind", "name"), [("PNG", "a.png"), ("JPEG", "a.JPG"), ("BMP", "a.bmp"), ("GIF", "a.gif"), ("TIFF", "a.tif"), ("PPM", "a.ppm")])
def test_a_plain_image_has_no_findings(kind, name):
    data = encoded(picture(), kind)
    assert findings(data, name) == []
    image = decode(data, name)
    assert (image.mode, image.size) == ("RGB", (30, 20))


def test_lossless_files_come_back_as_they_were():
    assert np.array_equal(np.asarray(decode(encoded(picture(), "PNG"), "a.png")), np.asarray(picture()))


def test_an_empty_file_is_zero_size():
    (found,) = findings(b"", "a.jpg")
    assert (found.kind, found.fatal) == ("zero_size", True)
    with pytest.raises(DataError, match=r"^a\.jpg: zero_size: the file is empty \(0 bytes\)$"):
        decode(b"", "a.jpg")


def test_bytes_of_no_image_are_unreadable():
    (found,) = findings(b"hello, world" * 20, "b/a.jpg")
    assert (found.kind, found.fatal) == ("unreadable", True)
    assert "not an image of a known format (JPEG," in found.detail


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "a.jpg"), ("PNG", "a.png"), ("BMP", "a.bmp"), ("TIFF", "a.tif"), ("PPM", "a.ppm")])
def test_a_cut_file_is_truncated(kind, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))
    data = encoded(noise, kind)
    (found,) = findings(data[: len(data) // 2], name)
    assert (found.kind, found.fatal) == ("truncated", True)
    assert "ends too early" in found.detail
    with pytest.raises(DataError, match=rf"^{name}: truncated: "):
        decode(data[: len(data) // 2], name)


def test_a_wrong_extension_is_told_and_the_content_read():
    (found,) = findings(encoded(picture(), "PNG"), "photo.jpg")
    assert (found.kind, found.fatal, found.detail) == ("wrong_extension", False, "the content is PNG, the name ends in .jpg")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_fatal(kind):
    data = encoded(picture(), kind, save_all=True, append_images=[picture(seed=9), picture(seed=30)])
    found = findings(data, f"a.{'tif' if kind == 'TIFF' else kind.lower()}")
    assert [(f.kind, f.fatal) for f in found] == [("animated", True)]
    assert found[0].detail.startswith("3 frames")


def test_a_phone_jpeg_with_a_second_picture_is_its_first():
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture(seed=40)])
    assert findings(data, "a.jpg") == []
    assert abs(np.asarray(decode(data, "a.jpg")).astype(int) - np.asarray(picture())).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_whole_range(kind):
    values = np.linspace(0, 65535, 64 * 50).round().astype(np.uint16).reshape(50, 64)
    name = "a.png" if kind == "PNG" else "a.tif"
    data = encoded(Image.fromarray(values), kind)
    assert kinds(data, name) == ["16_bit"]
    pixels = np.asarray(decode(data, name))
    assert np.array_equal(pixels[..., 0], np.round(values / 257.0).astype(np.uint8))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_16_bit_colour_is_told():
    import struct
    import zlib

    def chunk(tag, body):
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    rows = b"\0" + struct.pack(">6H", 0x1234, 0x8000, 0xFFFF, 0, 0x00FF, 0x0100)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert kinds(data, "a.png") == ["16_bit"]
    assert np.asarray(decode(data, "a.png")).tolist() == [[[0x12, 0x80, 0xFF], [0, 0, 1]]]


def test_floats_are_refused_because_their_range_is_unknown():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    (found,) = findings(data, "a.tif")
    assert found.kind == "unreadable"
    assert "floats, whose range is not fixed" in found.detail


def test_cmyk_is_told_and_converted():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert kinds(data, "a.tif") == ["cmyk"]
    assert np.asarray(decode(data, "a.tif"))[0, 0].tolist() == [255, 0, 0]


def test_a_palette_is_told_and_looked_up():
    data = encoded(picture().quantize(8), "PNG")
    assert kinds(data, "a.png") == ["palette"]
    assert np.array_equal(np.asarray(decode(data, "a.png")), np.asarray(picture().quantize(8).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_black_in_their_share(mode):
    layers = np.zeros((1, 3, 4), np.uint8)
    layers[..., :3] = 200
    layers[0, :, 3] = (0, 128, 255)
    image = Image.fromarray(layers).convert(mode) if mode != "P" else Image.fromarray(layers).quantize(8)
    data = encoded(image, "PNG")
    assert "transparent" in kinds(data, "a.png")
    pixels = np.asarray(decode(data, "a.png"))[0, :, 0].astype(int)
    assert np.abs(pixels - [0, 200 * 128 / 255, 200]).max() <= 1


def test_full_alpha_is_nothing_to_tell():
    data = encoded(picture().convert("RGBA"), "PNG")
    assert findings(data, "a.png") == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_undone_as_pillow_does(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif)
    name = "a.png" if kind == "PNG" else "a.tif"
    assert kinds(data, name) == (["exif_rotated"] if orientation > 1 else [])
    twin = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(picture(), "PNG", exif=exif)))).convert("RGB")
    assert np.array_equal(np.asarray(decode(data, name)), np.asarray(twin))


def turned_files(orientation):
    """{name: bytes} of one picture whose file asks for this orientation, wherever a format may say so."""
    exif, noted = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = orientation
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    noted.add_itxt("XML:com.adobe.xmp", xmp)
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}
    plain = {f"a.{ending}": encoded(picture(), kind, exif=exif) for ending, kind in kinds.items()}
    return {
        **plain,
        "xmp.png": encoded(picture(), "PNG", pnginfo=noted),
        "xmp.jpg": encoded(picture(), "JPEG", xmp=xmp.encode()),
        "xmp.webp": encoded(picture(), "WEBP", xmp=xmp.encode()),
        "both.jpg": encoded(picture(), "JPEG", exif=exif, xmp=xmp.encode()),
    }


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_decoded_picture_is_turned_once(orientation):
    for name, data in turned_files(orientation).items():
        decoded = decode(data, name)
        turned = Image.open(io.BytesIO(data))
        assert decoded.size == (20, 30) if orientation > 4 else (30, 20), name
        for again in (as_rgb(decoded), as_rgb(as_rgb(turned)), as_rgb(turned)):
            assert np.array_equal(np.asarray(again), np.asarray(decoded)), name
        assert ImageOps.exif_transpose(decoded).tobytes() == decoded.tobytes(), name
        assert 0x0112 not in decoded.getexif(), name
        assert 0x0112 not in as_rgb(turned).getexif(), name


def test_what_a_picture_in_memory_says_beside_its_pixels_is_left_to_its_owner():
    own = picture()
    own.info["comment"] = "mine"
    assert as_rgb(own).info == {}
    assert own.info == {"comment": "mine"}


def test_corrupt_exif_is_told_without_a_warning():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(picture(), "JPEG", exif=exif))
    start = data.index(b"Exif\0\0") + 6
    data[start + 8 : start + 10] = b"\xff\xff"  # more directory entries than there are bytes
    assert "corrupt_metadata" in kinds(bytes(data), "a.jpg")
    decode(bytes(data), "a.jpg")


def test_more_pixels_than_the_bomb_limit_are_fatal(monkeypatch):
    data = encoded(picture(20, 30), "PNG")
    for limit in (599, 299, 100):  # Pillow warns above the limit and raises above twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        (found,) = findings(data, "a.png")
        assert (found.kind, found.fatal) == ("too_large", True)
        assert "scale the image down" in found.detail
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert findings(data, "a.png") == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damaged_bytes_never_escape_as_anything_but_findings(kind):
    rng = np.random.default_rng(3)
    data = encoded(picture(), kind)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 400), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        cut = bytes(damaged[: rng.integers(0, len(data) + 1)]) if rng.random() < 0.3 else bytes(damaged)
        found = findings(cut, "a")
        assert all(f.fatal == (f.kind in FATAL) for f in found)
        if any(f.fatal for f in found):
            with pytest.raises(DataError, match=r"^a: "):
                decode(cut, "a")
        else:
            assert decode(cut, "a").mode == "RGB"


def test_threads_keep_their_findings_apart_and_leave_the_warning_filters_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    broken = bytearray(encoded(picture(), "JPEG", exif=exif))
    start = broken.index(b"Exif\0\0") + 6
    broken[start + 8 : start + 10] = b"\xff\xff"
    plain = encoded(picture(), "JPEG")
    before, shown = list(warnings.filters), warnings.showwarning
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: kinds(bytes(broken) if i % 2 else plain, "a.jpg"), range(200)))
    assert all(("corrupt_metadata" in one) == bool(i % 2) for i, one in enumerate(found))
    assert list(warnings.filters) == before
    assert warnings.showwarning is shown


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(20, 33), (31, 20), (50, 64), (100, 7), (24, 24)])
def test_crop_resizes_as_torchvision(shape, interpolation):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize as oracle

    image = picture(*shape)
    ours = resize(image, (24, 24), "crop", None, interpolation)
    theirs = oracle(image, [24], interpolation=InterpolationMode(interpolation), antialias=True)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, np.asarray(theirs))
    assert np.array_equal(resize(image, (24, 24), "crop", 28, interpolation), np.asarray(oracle(image, [28], interpolation=InterpolationMode(interpolation))))


def test_crop_covers_a_size_that_is_not_square_by_the_smallest_scale():
    for height, width in [(20, 30), (50, 20), (33, 47), (24, 48), (5, 90)]:
        got = resize(picture(height, width), (24, 48), "crop", None, "bilinear").shape
        scale = max(24 / height, 48 / width)
        assert got[0] >= 24
        assert got[1] >= 48
        assert abs(got[0] - height * scale) < 1
        assert abs(got[1] - width * scale) < 1
    assert resize(picture(20, 30), (24, 48), "crop", 30, "bilinear").shape == (40, 60, 3)


def test_stretch_is_exact_and_pad_keeps_the_aspect_on_black():
    assert resize(picture(20, 30), (16, 17), "stretch", None, "bilinear").shape == (16, 17, 3)
    white = Image.new("RGB", (40, 20), (255, 255, 255))
    padded = resize(white, (32, 32), "pad", None, "bicubic")
    assert padded.shape == (32, 32, 3)
    assert (padded[8:24] == 255).all()
    assert not padded[:8].any()
    assert not padded[24:].any()
    assert resize(Image.new("RGB", (1000, 1)), (8, 8), "pad", None, "bilinear").shape == (8, 8, 3)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_a_picture_of_the_right_size_is_not_resampled(fit):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    assert np.array_equal(resize(image, (24, 40), fit, None, "bicubic"), np.asarray(image))
