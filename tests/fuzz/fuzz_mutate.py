"""Ways to damage files on purpose: bytes, words of text, values of JSON, operations of a pickle, tags and segments."""

import copy
import json
import pickletools
import struct

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    33,
    127,
    128,
    255,
    256,
    1000,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
WORDS = (
    *("", "0", "-1", "1e999", "-inf", "nan", "NaN", "1e-320", "0x10", "1_000", "9" * 400, "1.5.2", "+", "-", "١٢"),
    *(
        "\x00",
        "\x1b[31m",
        "\u202e",
        "\ud7ff",
        "é" * 50,
        "a" * 5000,
        "ship",
        "<",
        "&lol;",
        "]]>",
        '"',
        "'",
        "{",
        "[",
        ",",
    ),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "__import__('os')",
        "os.system",
        "%s%s%s%n",
        "${jndi}",
        "None",
        "True",
        "null",
    ),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e308, 5e-324),
    *(
        "",
        "x",
        "\x1b[2J",
        "a\nb",
        "é",
        "9" * 30,
        "x" * 3000,
        [],
        {},
        [[]],
        [1, 2],
        [None],
        {"a": 1},
        {"": {}},
        [1e308] * 4,
    ),
)


def write(path, data):
    """Writes a file anew. (One that is emptied and filled again makes some file systems wait for the disk.)"""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def damage_bytes(draw, data):
    """Flips, cuts, repeats or replaces some bytes. Args: draw, random.Random; data, bytes. Returns: bytes."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        elif kind == 2:
            del data[place : place + draw.choice((1, 2, 4, 16, 1000, 10**9))]
        elif kind == 3:
            data[place:place] = draw.randbytes(draw.choice((1, 2, 4, 16, 64)))
        elif kind == 4:
            other = draw.randrange(len(data) + 1)
            data[place:place] = data[other : other + draw.choice((1, 4, 16, 200))]
        else:
            form = draw.choice(("<H", ">H", "<I", ">I", "<Q"))
            value = draw.choice(NUMBERS) % (1 << 8 * struct.calcsize(form))
            data[place : place + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(data)


def damage_text(draw, text):
    """Changes words and lines, and sometimes the encoding. Returns: bytes."""
    lines = text.split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(lines))
        words = lines[place].split(" ")
        kind = draw.randrange(8)
        if kind < 4:
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        elif kind == 4:
            del words[draw.randrange(len(words))]
        elif kind == 5:
            words.insert(draw.randrange(len(words) + 1), draw.choice(WORDS))
        elif kind == 6:
            lines.insert(place, draw.choice(lines))
        else:
            words = [draw.choice((" ", "\t", ",", ";", "\u00a0")).join(words)]
        lines[place] = " ".join(words)
    text = draw.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines)
    encoding = draw.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gbk", "latin-1"))
    data = text.encode(encoding, "replace")
    return damage_bytes(draw, data) if draw.random() < 0.25 else data


def damage_json(draw, value):
    """Changes values of JSON, and sometimes its text. Args: draw; value. Returns: bytes."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        value = _damage_node(draw, value)
    text = json.dumps(value)
    if draw.random() < 0.1:
        text = text.replace(
            draw.choice(("1", "0", "true", '"')), draw.choice(("NaN", "-Infinity", "1e999", "\\ud800", "[[")), 1
        )
    if draw.random() < 0.03:
        depth = draw.choice((50, 500, 900, 950, 980, 990, 5000, 100_000))
        text = text.replace(draw.choice(("1", "0", "[]", "null")), "[" * depth + "]" * depth, 1)
    data = text.encode("utf-8", "surrogatepass")
    return damage_bytes(draw, data) if draw.random() < 0.15 else data


def _damage_node(draw, root):
    """Replaces, removes, repeats or adds one value somewhere in JSON."""
    places = []  # (container, key)
    stack = [root]
    while stack:
        node = stack.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            stack.append(node[key])
    if not places or draw.random() < 0.02:
        return copy.deepcopy(draw.choice(VALUES))  # (it may be changed next)
    container, key = draw.choice(places)
    kind = draw.randrange(6)
    if kind < 3:
        container[key] = copy.deepcopy(draw.choice(VALUES))
    elif kind == 3:
        del container[key]
    elif kind == 4:
        other = draw.choice(places)
        container[key] = copy.deepcopy(
            other[0].get(other[1]) if isinstance(other[0], dict) else other[0][other[1] : other[1] + 1]
        )
    elif isinstance(container, dict):
        container[draw.choice(WORDS)] = copy.deepcopy(draw.choice(VALUES))
    else:
        container[key:key] = [copy.deepcopy(draw.choice(VALUES))] * draw.choice((1, 2, 50))
    return root


def operations(pickle):
    """The operations of a pickle, each as its bytes."""
    starts = [place for _, _, place in pickletools.genops(pickle)]
    return [pickle[a:b] for a, b in zip(starts, [*starts[1:], len(pickle)], strict=True)]


# What a pickle could ask for, beside the operations of the well-formed ones.
OPERATIONS = [
    *(bytes([code]) for code in range(256)),
    *(
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"cposix\nsystem\n",
        b"cimportlib\nimport_module\n",
        b"cantigravity\nx\n",
    ),
    *(b"csubprocess\nPopen\n", b"cbuiltins\ngetattr\n", b"c__main__\nx\n", b"cnumpy\nload\n", b"ctorch\nload\n"),
    *(
        b"ctorch\nSize\n",
        b"c_codecs\nencode\n",
        b"cbuiltins\nlist\n",
        b"cbuiltins\nset\n",
        b"ccollections\nOrderedDict\n",
    ),
    *(b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch.storage\nUntypedStorage\n",
    ),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"cargparse\nNamespace\n", b"\x8c\x02os\x8c\x06system\x93"),
    *(b"X\x02\x00\x00\x00id", b"X\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255, b"G\x7f\xf0\x00\x00\x00\x00\x00\x00"),
    *(b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"M\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"C\x04abcd"),
    *(b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"j\x02\x00\x00\x00", b"U\x03abc", b"U\x03\xff\xfe\xfd"),
]


def damage_pickle(draw, parts, others):
    """Changes operations of a pickle. Args: draw; parts and others, lists of operations. Returns: bytes."""
    parts = list(parts)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        place = draw.randrange(len(parts))
        kind = draw.randrange(8)
        if kind == 0:
            del parts[place]
        elif kind == 1:
            parts.insert(place, draw.choice(OPERATIONS))
        elif kind == 2:
            parts[place] = draw.choice(OPERATIONS)
        elif kind == 3:
            other = draw.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 4:
            parts[place:place] = parts[place : place + draw.choice((1, 2, 5, 20))] * draw.choice((1, 2, 100))
        elif kind == 5:
            start = draw.randrange(len(others))
            parts[place:place] = others[start : start + draw.choice((1, 3, 10, 40))]
        elif kind == 6 and len(parts[place]) > 1:
            parts[place] = parts[place][:1] + damage_bytes(draw, parts[place][1:])
        else:
            parts[place:place] = [draw.choice(OPERATIONS)] * draw.choice((1, 3, 70, 3000))
        if not parts:
            return b"."
    data = b"".join(parts)
    return data if draw.random() < 0.5 else data + b"."
