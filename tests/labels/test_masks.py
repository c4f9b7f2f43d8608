"""Masks in every form that they come in, and what is refused."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from dense_folders import PALETTE, write_mask
from PIL import Image

from haksnet_jax.errors import UserError
from haksnet_jax.labels import masks

LABELS = np.array([[0, 1, 1], [255, 0, 1]], np.uint8)


@pytest.mark.parametrize("kind", ["index", "palette", "deep"])
def test_numbers_are_read_the_same_from_grey_palette_and_16_bits(tmp_path, kind):
    write_mask(tmp_path / "m.png", LABELS, kind)
    found = masks.read_mask(tmp_path / "m.png", masks.number_legend(2))
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.labels.dtype == np.uint8 and not found.unknown


@pytest.mark.parametrize("kind", ["colours", "palette"])
def test_colours_are_read_by_a_palette_also_out_of_a_palette_png(tmp_path, kind):
    (tmp_path / "palette.txt").write_text(PALETTE)
    names, legend = masks.read_palette(tmp_path / "palette.txt")
    assert names == ("land", "water")
    write_mask(tmp_path / "m.png", LABELS, kind)
    np.testing.assert_array_equal(masks.read_mask(tmp_path / "m.png", legend).labels, LABELS)


def test_unknown_values_and_colours_are_counted_and_ignored(tmp_path):
    write_mask(tmp_path / "m.png", np.array([[0, 7, 7, 9]], np.uint8))
    found = masks.read_mask(tmp_path / "m.png", masks.number_legend(2))
    np.testing.assert_array_equal(found.labels, [[0, 255, 255, 255]])
    assert found.unknown == {7: 2, 9: 1}
    assert masks.describe_unknown(found.unknown) == "3 pixels have values that are no class: 7, 9"
    Image.fromarray(np.array([[[132, 41, 246], [132, 41, 247]]], np.uint8)).save(tmp_path / "c.png")
    legend = masks.parse_palette(["8429F6 land"], "here")[1]
    assert masks.read_mask(tmp_path / "c.png", legend).unknown == {(132, 41, 247): 1}


def test_values_of_classes_can_be_any_numbers_also_several(tmp_path):
    write_mask(tmp_path / "m.png", np.array([[1, 7, 0, 255, 300]], np.uint16), "deep")
    legend = masks.number_legend(2, ((1, 300), 7), ignored=(0,))
    found = masks.read_mask(tmp_path / "m.png", legend)
    np.testing.assert_array_equal(found.labels, [[0, 1, 255, 255, 0]])
    assert found.unknown == {255: 1}
    with pytest.raises(UserError, match="stands for two classes"):
        masks.number_legend(2, (3, 3))
    with pytest.raises(UserError, match="each of the 3 classes, got 2"):
        masks.number_legend(3, (0, 1))


def test_transparent_pixels_have_no_label(tmp_path):
    pixels = np.array([[[132, 41, 246, 255], [132, 41, 246, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    legend = masks.parse_palette(["8429F6 land"], "here")[1]
    np.testing.assert_array_equal(masks.read_mask(tmp_path / "m.png", legend).labels, [[0, 255]])


def test_a_jpeg_is_refused_whatever_its_name(tmp_path):
    cv2.imwrite(str(tmp_path / "m.jpg"), np.zeros((16, 16), np.uint8))
    (tmp_path / "m.png").write_bytes((tmp_path / "m.jpg").read_bytes())
    for name in ("m.jpg", "m.png"):
        with pytest.raises(UserError, match=r"m\.\w+: a mask as JPEG, which changes the values"):
            masks.read_mask(tmp_path / name, masks.number_legend(2))


def test_colours_without_a_palette_ask_for_one(tmp_path):
    write_mask(tmp_path / "m.png", LABELS, "colours")
    with pytest.raises(UserError, match=r"palette\.txt"):
        masks.read_mask(tmp_path / "m.png", masks.number_legend(2))


def test_damaged_masks_are_named(tmp_path):
    write_mask(tmp_path / "m.png", np.arange(10_000, dtype=np.uint8).reshape(100, 100) % 2)
    data = (tmp_path / "m.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(UserError, match=name):
            masks.read_mask(tmp_path / name, masks.number_legend(2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8429F6", r"palette\.txt:1: expected a line like"),
        ("1 2 300 land", r"palette\.txt:1: a colour's values"),
        ("8429F6 land\n132 41 246 water", r"palette\.txt:2: the colour 8429F6 stands for two classes"),
        ("\n# nothing\n", "names no class"),
    ],
)
def test_a_palette_that_cannot_be_used_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "palette.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        masks.read_palette(tmp_path / "palette.txt")


def test_what_pillow_raises_for_a_broken_header_is_one_sentence(tmp_path):
    """Pillow answers these with ValueError and others, not with OSError."""
    png = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 5)
        + b"IHDR"
        + bytes(5)
        + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(5)))
    )
    tiff = b"II*\0\x08\0\0\0\2\0" + struct.pack("<HHIIHHII", 256, 3, 1, 0, 257, 3, 1, 16) + bytes(4)
    for name, content in (("a.png", png), ("a.tif", tiff)):
        path = tmp_path / name
        path.write_bytes(content)
        for use in (masks.read_mask_size, lambda path: masks.read_mask(path, masks.number_legend(2))):
            with pytest.raises(UserError, match=f"{name}: the mask cannot be read"):
                use(path)


def test_a_palette_is_read_in_utf_16_and_other_encodings_are_named_with_their_line(tmp_path):
    path = tmp_path / "palette.txt"
    path.write_bytes("FF0000 Größe\n00FF00 b\n".encode("utf-16"))
    assert masks.read_palette(path)[0] == ("Größe", "b")
    path.write_bytes("00FF00 b\nFF0000 Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"palette\.txt:2: expected text in UTF-8"):
        masks.read_palette(path)


def test_values_beyond_16_bits_are_named_with_the_file(tmp_path):
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: expected values of a mask between 0 and 65535, got 70000"):
        masks.read_mask(tmp_path / "a.tif", masks.number_legend(2))


def test_a_mask_is_turned_as_its_file_says(tmp_path):
    """As images are: the stored rows are the columns of what is seen (orientation 6)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(LABELS).save(tmp_path / "a.png", exif=exif)
    found = masks.read_mask(tmp_path / "a.png", masks.number_legend(2)).labels
    np.testing.assert_array_equal(found, np.rot90(LABELS, -1))
    assert masks.read_mask_size(tmp_path / "a.png") == (3, 2)
    Image.fromarray(LABELS).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    with pytest.raises(UserError, match=r"a\.tif: a TIFF mask that is to be turned"):
        masks.read_mask(tmp_path / "a.tif", masks.number_legend(2))


def test_a_chunk_that_claims_gigabytes_is_a_sentence(tmp_path):
    write_mask(tmp_path / "m.png", LABELS)
    data = bytearray((tmp_path / "m.png").read_bytes())
    place = data.index(b"IDAT") - 4
    data[place : place + 4] = struct.pack(">I", 0xF0000000)
    (tmp_path / "m.png").write_bytes(data)
    with pytest.raises(UserError, match=r"m\.png: the mask cannot be read"):
        masks.read_mask(tmp_path / "m.png", masks.number_legend(2))
