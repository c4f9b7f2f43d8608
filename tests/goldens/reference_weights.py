"""Deterministic weights and inputs for the golden fixtures (numpy only).

The golden fixtures compare two implementations of the same network without
shipping any weight files.  Both sides build every parameter from its PyTorch
``state_dict`` name alone, with the functions in this module:

>>> import json
>>> entries = json.load(open('state_dict_tiny.json'))['entries']
>>> weights = make_state_dict(entries)           # {name: float32 ndarray}

Tensors are in PyTorch layout (conv ``(out, in/groups, kh, kw)``, linear
``(out, in)``).  A value depends only on ``(salt, name, shape)``: the generator
is ``numpy.random.default_rng(zlib.crc32((salt + name).encode('utf-8')))``, one
``standard_normal`` draw in float64 fills the tensor in C order, the draw is
scaled and shifted by the rule for the tensor's role, and the result is cast to
float32.  ``salt`` is the empty string unless a fixture's manifest gives one.

Run ``python reference_weights.py state_dict_tiny.json weights_check.json`` to
check that this machine's numpy yields the same numbers as the reference run.
"""

import json
import re
import sys
import zlib

import numpy as np

__all__ = ["make_tensor", "make_state_dict", "make_input", "tensor_digest"]

# Gains for tensors with at least two dimensions, by name suffix.  The first
# matching suffix wins.  std = gain / sqrt(fan_in), fan_in = prod(shape[1:]).
_GAINS = (
    ("neck.fpn_convs.1.conv.weight", 1.2),
    ("neck.fpn_convs.2.conv.weight", 1.7),
    ("neck.fpn_convs.3.conv.weight", 2.2),
    ("rpn_head.rpn_conv.weight", 1.2),
    ("rpn_head.rpn_cls.weight", 0.6),
    ("rpn_head.rpn_reg.weight", 0.25),
    ("bbox_head.shared_fcs.0.weight", 1.2),
    ("bbox_head.shared_fcs.1.weight", 1.4),
    ("bbox_head.fc_cls.weight", 1.6),
    ("bbox_head.fc_reg.weight", 0.6),
    (".kernel_attn.0.weight", 2.0),
    (".kernel_attn.2.weight", 2.0),
    (".channel_attention.fc.0.weight", 2.0),
    (".channel_attention.fc.2.weight", 2.0),
)
_DEFAULT_GAIN = 1.0

# Constant offsets added to a bias, by name suffix: {suffix: (index, value)}.
# index None means every element.
_BIAS_SHIFTS = (
    ("rpn_head.rpn_cls.bias", None, -1.0),
    ("bbox_head.fc_cls.bias", -1, 11.0),  # background is the last class
)


def _residual_std(name):
    """Rough std of the residual stream in front of a block's batch norm.

    The stream grows by about 0.45 per residual block; running variances that
    follow it keep every branch input near unit scale.
    """
    found = re.search(r"block\d+\.(\d+)\.norm([12])\.", name)
    if not found:
        return 1.0
    return 1.0 + 0.45 * int(found.group(1)) + 0.2 * (int(found.group(2)) - 1)


def _rng(salt, name):
    return np.random.default_rng(zlib.crc32((salt + name).encode("utf-8")))


def make_tensor(name, shape, dtype="float32", salt=""):
    """Return the reference value of one ``state_dict`` entry.

    Args:
        name (str): PyTorch parameter or buffer name.
        shape (Sequence[int]): its shape in PyTorch layout.
        dtype (str): ``float32`` or ``int64``.
        salt (str): prefix that selects another family of weights.
    """
    shape = tuple(int(s) for s in shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    draw = _rng(salt, name).standard_normal(shape)

    if name.endswith("running_mean"):
        out = 0.05 * draw
    elif name.endswith("running_var"):
        out = np.exp(0.1 * draw) * _residual_std(name) ** 2
    elif "layer_scale" in name:
        out = 0.3 + 0.05 * draw
    elif len(shape) >= 2:
        gain = _DEFAULT_GAIN
        for suffix, value in _GAINS:
            if name.endswith(suffix):
                gain = value
                break
        fan_in = int(np.prod(shape[1:]))
        out = draw * (gain / np.sqrt(fan_in))
    elif name.endswith("weight"):  # norm layers
        out = 1.0 + 0.1 * draw
    else:  # every bias
        out = 0.02 * draw
        for suffix, index, value in _BIAS_SHIFTS:
            if name.endswith(suffix):
                if index is None:
                    out = out + value
                else:
                    out[index] += value
    return np.asarray(out, dtype=np.float64).astype(np.dtype(dtype))


def make_state_dict(entries, salt="", prefix=""):
    """Build ``{name: array}`` for a list of ``{name, shape, dtype}`` entries.

    ``prefix`` is prepended to every name before hashing but not to the keys
    of the result, which lets sub-modules share the weights of a full model.
    """
    return {e["name"]: make_tensor(prefix + e["name"], e["shape"], e.get("dtype", "float32"), salt) for e in entries}


def make_input(seed, shape, scale=1.0, shift=0.0):
    """Return a float32 test input: ``scale * N(0, 1) + shift``, C order."""
    draw = np.random.default_rng(int(seed)).standard_normal(tuple(shape))
    return (scale * draw + shift).astype(np.float32)


def tensor_digest(x):
    """Summarise an array: float64 sum, sum of absolutes and CRC32 of bytes."""
    x = np.ascontiguousarray(x)
    x64 = x.astype(np.float64)
    return dict(
        shape=list(x.shape),
        dtype=str(x.dtype),
        sum=float(x64.sum()),
        abs_sum=float(np.abs(x64).sum()),
        crc32=int(zlib.crc32(x.tobytes())),
    )


def _main(argv):
    entries = json.load(open(argv[1]))["entries"]
    weights = make_state_dict(entries)
    if len(argv) > 2:
        expected = json.load(open(argv[2]))["digests"]
        bad = [n for n, d in expected.items() if n in weights and tensor_digest(weights[n])["crc32"] != d["crc32"]]
        print(f"{len(expected) - len(bad)} of {len(expected)} tensors match")
        return 1 if bad else 0
    for name, value in weights.items():
        print(name, tensor_digest(value))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv))
