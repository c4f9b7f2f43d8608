"""Headers that lie: each is refused in a sentence, within a second and in little memory."""

import struct
import time
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest

from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.images.reader import ImageFile

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
GREY = PIXELS[..., 0].tobytes()
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()
TIFF_TAGS = ((256, 4, 1, 48), (257, 4, 1, 32), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
             (277, 3, 1, 1), (278, 4, 1, 32), (279, 4, 1, 1536))  # fmt: skip


def tiff(*changes, tags=TIFF_TAGS, data=GREY, following=0):
    """A grey TIFF: the pixels, then its directory. Args: changes, of tags (tag, type, count, value) by their number."""
    changed = {tag[0]: tag for tag in changes}
    tags = [changed.pop(tag[0], tag) for tag in tags] + list(changed.values())
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data, bits=8, colour=0):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return PNG[:8] + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def segment(marker, data=b""):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def frame(width, height, channels=3, bits=8):
    parts = b"".join(bytes([index, 0x11, 0]) for index in range(channels))
    return segment(0xC0, struct.pack(">BHHB", bits, height, width, channels) + parts)


def bmp(width, height, bits=24, compression=0):
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)


HOSTILE = {
    "tiff_repeated_table": (tiff(tags=((273, 1, 2_000_000, 8),) * 3000 + TIFF_TAGS, data=b"\1" * 2_000_000), "273"),
    "tiff_two_widths": (tiff(tags=(*TIFF_TAGS, (256, 4, 1, 40))), "256 occurs more than once"),
    **{f"tiff_{tag}_without_value": (tiff((tag, 3, 0, 0)), f"tag {tag} has 0") for tag in (256, 258, 262, 273, 277)},
    "tiff_65535_bands": (tiff((277, 3, 1, 65535)), "65535 bands"),
    "tiff_0_bands": (tiff((277, 3, 1, 0)), "0 bands"),
    "tiff_0_bits": (tiff((258, 3, 1, 0)), "0 bits"),
    "tiff_huge": (tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31)), "2147483648 x 2147483648"),
    "tiff_wide": (tiff((256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1)), "strips"),
    "tiff_many_strips": (tiff((257, 4, 1, 2**31 - 1), (278, 4, 1, 1)), "strips"),
    "tiff_big_strip": (tiff((256, 4, 1, 200_000), (257, 4, 1, 200_000), (278, 4, 1, 200_000), (259, 3, 1, 8)), "TILED"),
    "tiff_strip_outside": (tiff((273, 4, 1, 2**31)), "truncated"),
    "tiff_table_outside": (tiff((273, 4, 2**30, 8)), "truncated"),
    "tiff_width_as_text": (tiff((256, 2, 4, 48)), "256"),
    "tiff_complex": (tiff((339, 3, 1, 6)), "complex"),
    "tiff_no_directory": (b"II*\0" + struct.pack("<I", 2**31), "truncated"),
    "bigtiff_entries": (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**62) + bytes(100), "truncated"),
    "png_thousand_megapixels": (png(40_000, 30_000, b"\1" * 1_300_000), "TIFF"),
    "png_bomb": (png(30_000, 30_000, zlib.compress(bytes(1000))), "truncated"),
    "png_0_wide": (png(0, 30, b""), "0 x 30"),
    "png_9_bits": (png(30, 30, b"", bits=9), "9 bits"),
    "png_chunks": (PNG[:33] + chunk(b"tEXt", b"") * 100_000 + PNG[33:], "chunks"),
    "png_long_chunk": (PNG[:33] + struct.pack(">I", 2**31) + PNG[37:], "truncated"),
    "png_two_heads": (PNG[:33] + chunk(b"IHDR", PNG[16:29]) + PNG[33:], "two IHDR"),
    "png_other_first": (PNG[:8] + chunk(b"tEXt", b"a" * 13) + PNG[8:], "IHDR"),
    "jpeg_fill_bytes": (b"\xff\xd8" + b"\xff" * 5_000_000, "ends inside"),
    "jpeg_segments": (b"\xff\xd8" + segment(0xFE) * 100_000 + JPEG[2:], "5000"),
    "jpeg_no_length": (b"\xff\xd8\xff\xe0\0\0" + JPEG[2:], "no length"),
    "jpeg_bomb": (b"\xff\xd8" + frame(30_000, 30_000) + segment(0xDA, bytes(10)) + b"\xff\xd9", "truncated"),
    "jpeg_65535": (b"\xff\xd8" + frame(65535, 65535) + segment(0xDA) + bytes(9_000_000) + b"\xff\xd9", "TIFF"),
    "jpeg_0_high": (b"\xff\xd8" + frame(10, 0) + segment(0xDA, bytes(10)) + b"\xff\xd9", "10 x 0"),
    "jpeg_200_channels": (b"\xff\xd8" + frame(10, 10, 200) + segment(0xDA, bytes(10)) + b"\xff\xd9", "200 channels"),
    "jpeg_two_frames": (b"\xff\xd8" + frame(9, 9) * 2 + segment(0xDA, bytes(10)) + b"\xff\xd9", "two frames"),
    "bmp_minus": (bmp(-5, 5), "-5 x 5"),
    "bmp_big": (bmp(2**30, 2**30), "truncated"),
    "bmp_run_lengths": (bmp(2**15, 2**15, bits=8, compression=1), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_a_sentence_at_once(name, tmp_path):
    data, message = HOSTILE[name]
    path = tmp_path / f"a.{name.split('_')[0]}"
    path.write_bytes(data)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ImageError, match=message):
        read_header(path)
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    with pytest.raises(ImageError, match=message):
        ImageFile(path)


def test_a_tag_without_value_that_means_nothing_is_passed_over():
    assert read_header(tiff((274, 3, 0, 0))).orientation == 1


@pytest.mark.parametrize("length", [1, 60_000, 70_000, 1_000_000])
@pytest.mark.parametrize("tail", [b"film", b"\0", b"\xff\xda"])
def test_a_jpeg_with_a_tail_is_whole_and_a_cut_one_is_not(length, tail, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG + (tail * length)[:length])
    assert read_header(path)[:3] == ("JPEG", 48, 32)
    with ImageFile(path) as image:
        assert image.read(0, 0, 48, 32).shape == (32, 48, 3)
    path.write_bytes(JPEG[:-2] + (tail.replace(b"\xff", b"\0") * length)[:length])
    for read in (read_header, ImageFile):
        with pytest.raises(ImageError, match="truncated"):
            read(path)


def test_an_end_marker_across_two_pieces_is_found():
    # The search goes backwards in pieces of 65,536 bytes: here one begins between the two bytes of the marker.
    for tail in range(65_534, 65_538):
        assert read_header(JPEG + bytes(tail)).format == "JPEG"


def test_pages_are_counted_and_smaller_versions_are_not():
    assert read_header(tiff()).pages == 1
    first = tiff(following=8 + 1536 + 2 + 12 * len(TIFF_TAGS) + 4)
    entries = b"".join(struct.pack("<HHII", *tag) for tag in TIFF_TAGS)
    second = struct.pack("<H", len(TIFF_TAGS)) + entries + struct.pack("<I", 0)
    assert read_header(first + second).pages == 2
    overview = struct.pack("<H", len(TIFF_TAGS) + 1) + struct.pack("<HHII", 254, 4, 1, 1) + entries + bytes(4)
    assert read_header(first + overview).pages == 1
    assert read_header(tiff(following=8 + 1536)).pages == 1  # a circle


def test_errors_travel_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("reason", "the sentence", "a.tif")))
    assert (error.reason, error.sentence, str(error)) == ("reason", "the sentence", "a.tif: the sentence")


@pytest.mark.parametrize(
    ("start", "told"),
    [  # the marks of the formats, as their specifications give them
        (b"PK\x03\x04", "is a zip archive: unpack it"),
        (b"\x00\x00\x00\x18ftypisom", "is a video"),
        (b"\x00\x00\x00\x18ftypheic", "is a HEIC or AVIF image"),
        (b"RIFF\x00\x00\x00\x00WEBP", "is a WebP image"),
        (b"RIFF\x00\x00\x00\x00AVI ", "is a video"),
        (b"\x1aE\xdf\xa3", "is a video"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"text", "begins with b'text"),
    ],
)
def test_what_is_no_image_is_named(start, told):
    with pytest.raises(ImageError, match="expected a PNG, JPEG, BMP or TIFF file; this one " + told):
        read_header(start + bytes(40))
