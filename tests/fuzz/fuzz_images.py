"""Small image files in pieces: tags of a TIFF, segments of a JPEG, chunks of a PNG."""

import struct
import zlib

import cv2
import fuzz_mutate
import numpy as np

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Tags that some reader may look at.
_TAGS = (
    *(
        254,
        255,
        256,
        257,
        258,
        259,
        262,
        266,
        269,
        270,
        273,
        274,
        277,
        278,
        279,
        280,
        281,
        282,
        284,
        292,
        296,
        301,
        305,
    ),
    *(306, 317, 320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 512, 513, 529, 530, 531, 532, 700, 33432),
    *(33550, 33922, 34264, 34377, 34665, 34675, 34735, 34736, 34737, 42112, 42113, 50000),
)


def pixels():
    return np.random.default_rng(0).integers(0, 255, (16, 20, 3), np.uint8)


def tiff_tags(channels=3, bits=8):
    """{tag: (type, values)} of a small image, and its pixels."""
    data = np.resize(pixels(), (16, 20, channels)).astype(f"<u{bits // 8}").tobytes()
    tags = {
        256: (3, [20]),
        257: (3, [16]),
        258: (3, [bits] * channels),
        259: (3, [1]),
        262: (3, [2 if channels >= 3 else 1]),
        273: (4, [8]),
        277: (3, [channels]),
        278: (3, [16]),
        279: (4, [len(data)]),
        284: (3, [1]),
    }
    return tags, data


def write_tiff(entries, data, *, order="<", next_directory=0):
    """A TIFF. Args: entries, list of (tag, type, count or None, values); data, pixels, at byte 8."""
    directory = 8 + len(data) + len(data) % 2
    beyond = directory + 2 + 12 * len(entries) + 4
    out, extra = b"", b""
    for tag, kind, count, values in entries:
        size = _SIZES.get(kind, 1)
        packed = b"".join(
            (value % (1 << 8 * size)).to_bytes(size, "little" if order == "<" else "big") for value in values
        )
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", (beyond + len(extra)) % 2**32), extra + packed
        out += struct.pack(f"{order}HHI", tag, kind, (len(values) if count is None else count) % 2**32) + packed.ljust(
            4, b"\0"
        )
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    head = struct.pack(f"{order}H", len(entries) % 65536)
    return start + data + b"\0" * (len(data) % 2) + head + out + struct.pack(f"{order}I", next_directory) + extra


def damaged_tiff(draw):
    tags, data = tiff_tags(draw.choice((1, 2, 3, 3, 4, 5)), draw.choice((8, 8, 16)))
    entries = [(tag, kind, None, list(values)) for tag, (kind, values) in tags.items()]
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        place = draw.randrange(len(entries))
        tag, kind, count, values = entries[place]
        change = draw.randrange(8)
        if change == 0:
            entries[place] = (tag, draw.choice((*_SIZES, 0, 14, 99, 65535)), count, values)
        elif change == 1:
            entries[place] = (tag, kind, draw.choice(fuzz_mutate.NUMBERS), values)
        elif change == 2:
            entries[place] = (
                tag,
                kind,
                count,
                [draw.choice(fuzz_mutate.NUMBERS) for _ in values] * draw.choice((1, 1, 3, 500)),
            )
        elif change == 3:
            del entries[place]
        elif change == 4:
            entries.insert(draw.randrange(len(entries)), (tag, kind, count, values))
        elif change == 5:
            new = [draw.choice(fuzz_mutate.NUMBERS)] * draw.choice((0, 1, 2, 3, 6, 300))
            entries.append((draw.choice(_TAGS), draw.choice(tuple(_SIZES)), None, new))
        elif change == 6:
            text = [ord(c) for c in draw.choice(fuzz_mutate.WORDS) if ord(c) < 256]
            entries.append((draw.choice(_TAGS), 2, None, text))
        else:
            entries[place] = (draw.choice(_TAGS), kind, count, values)
        entries = entries or [(256, 3, None, [1])]
    made = write_tiff(
        entries, data, order=draw.choice("<<>"), next_directory=draw.choice((0, 0, 0, 8, *fuzz_mutate.NUMBERS))
    )
    return fuzz_mutate.damage_bytes(draw, made) if draw.random() < 0.25 else made


def jpeg_segments():
    """(list of segments before the pixels, the rest)."""
    data = cv2.imencode(".jpg", pixels())[1].tobytes()
    segments, place = [], 2
    while data[place + 1] != 0xDA:
        size = 2 + struct.unpack_from(">H", data, place + 2)[0]
        segments.append(data[place : place + size])
        place += size
    return segments, data[place:]


def damaged_jpeg(draw, seed):
    segments, rest = list(seed[0]), seed[1]
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(segments))
        change = draw.randrange(7)
        if change == 0:
            del segments[place]
        elif change == 1:
            segments.insert(place, draw.choice(seed[0]))
        elif change == 2:
            length = draw.choice((0, 1, 2, 3, 255, 4000, 65535))
            segments[place] = segments[place][:2] + struct.pack(">H", length) + segments[place][4:]
        elif change == 3:
            segments[place] = segments[place][:4] + fuzz_mutate.damage_bytes(draw, segments[place][4:])
        elif change == 4:
            body = draw.choice(
                (b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0", b"Adobe")
            )
            body += draw.randbytes(draw.choice((0, 1, 30, 60_000)))
            segments.insert(place, struct.pack(">BBH", 255, draw.choice(range(0xC0, 0xFF)), len(body) + 2) + body)
        elif change == 5:
            segments[place:place] = [b"\xff" * draw.choice((1, 2, 10_000))]
        else:
            segments[place:place] = [segments[place]] * draw.choice((2, 100))
        segments = segments or [b"\xff\xfe\0\x02"]
    if draw.random() < 0.2:
        rest = fuzz_mutate.damage_bytes(draw, rest)
    made = b"\xff\xd8" + b"".join(segments) + rest + draw.choice((b"", b"", draw.randbytes(70_000)))
    return fuzz_mutate.damage_bytes(draw, made) if draw.random() < 0.15 else made


def png_chunks(image):
    """`chunks_of` an image's PNG."""
    return chunks_of(cv2.imencode(".png", image)[1].tobytes())


def chunks_of(data):
    """List of (kind, content) of a PNG."""
    place, chunks = 8, []
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def damaged_png(draw, seed):
    chunks = list(seed)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(chunks))
        kind, content = chunks[place]
        change = draw.randrange(6)
        if change == 0:
            del chunks[place]
        elif change == 1:
            chunks.insert(draw.randrange(len(chunks) + 1), chunks[place])
        elif change == 2:
            chunks[place] = (kind, fuzz_mutate.damage_bytes(draw, content))
        elif change == 3:
            new = draw.choice((b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"IDAT", b"IEND", b"qqqq"))
            chunks.insert(place, (new, draw.randbytes(draw.choice((0, 1, 3, 6, 256, 768, 5000)))))
        elif change == 4:
            header = bytearray(chunks[0][1].ljust(13, b"\0"))
            spot = draw.randrange(13)
            header[spot] = draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 127, 255))
            chunks[0] = (chunks[0][0], bytes(header))
        else:
            chunks[place] = (kind, zlib.compress(bytes(draw.choice((10, 10**6)))))
        chunks = chunks or [(b"IEND", b"")]
    made = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return fuzz_mutate.damage_bytes(draw, made) if draw.random() < 0.2 else made
