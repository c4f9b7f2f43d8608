"""Lays published sets of segmentation out as `train/{images,masks}` and `val/{images,masks}`, large ones in tiles.

    python -m data.dense_sets loveda --source=LoveDA --output=data/loveda
    python -m data.dense_sets potsdam --images=2_Ortho_RGB --masks=5_Labels_all \
        --eroded=5_Labels_all_noBoundary --output=data/potsdam
    python -m data.dense_sets vaihingen --images=top --masks=gts --eroded=gts_eroded --output=data/vaihingen
    python -m data.dense_sets uavid --source=UAVid --output=data/uavid

Training images are cut into tiles; those of `val` stay whole, since evaluation looks at images of any size. The masks
of the ISPRS sets are whole for training and have eroded borders for `val`, as is usual: the other way round costs or
gives about five points. A run that is interrupted goes on where it ended.
"""

import argparse
import pathlib
import re
import shutil
import sys

import cv2
from PIL import Image

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader
from haksnet_jax.inference.dense_session import starts

ISPRS_PALETTE = (
    "FFFFFF impervious surface",
    "0000FF building",
    "00FFFF low vegetation",
    "00FF00 tree",
    "FFFF00 car",
    "FF0000 clutter",
    "000000 ignored",  # eroded borders
)
UAVID_PALETTE = (
    "800000 building",
    "804080 road",
    "008000 tree",
    "808000 low vegetation",
    "400080 moving car",
    "C000C0 static car",
    "404000 human",
    "000000 background clutter",
)
_POTSDAM_VAL = re.compile(r"(2_13|2_14|3_13|3_14|4_13|4_14|4_15|5_13|5_14|5_15|6_13|6_14|6_15|7_13)$")
_VAIHINGEN_VAL = {2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38}
_TILE = 1024


def _by_key(folder, pattern):
    """{key: path} of the images below a folder whose names have the key in them."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        match = pattern.search(path.stem)
        if match and image_files.is_image(path):
            found[match[1]] = path
    if not found:
        raise UserError(f"{folder} holds no image whose name has the form {pattern.pattern}")
    return found


def isprs(arguments):
    """Yields (split, name, image, mask, stride of the tiles or None) of Potsdam or Vaihingen."""
    is_potsdam = arguments.set == "potsdam"
    pattern = re.compile(r"potsdam_(\d+_\d+)" if is_potsdam else r"area(\d+)")
    images, masks, eroded = (
        _by_key(folder, pattern) for folder in (arguments.images, arguments.masks, arguments.eroded)
    )
    for key, image in images.items():
        if is_potsdam and key == "7_10":  # its labels have faults
            continue
        is_val = bool(_POTSDAM_VAL.match(key)) if is_potsdam else int(key) in _VAIHINGEN_VAL
        of_split = eroded if is_val else masks
        if key not in of_split:
            raise UserError(f"{image}: there is no mask for it in {arguments.eroded if is_val else arguments.masks}")
        stride = None if is_val else (1024 if is_potsdam else 512)
        yield "val" if is_val else "train", key, image, of_split[key], stride


def loveda(arguments):
    """As `isprs`, of LoveDA: Train and Val, each with Urban and Rural."""
    for split in ("train", "val"):
        for place in ("Urban", "Rural"):
            folder = pathlib.Path(arguments.source) / split.capitalize() / place
            for mask in image_files.list_images(folder / "masks_png"):
                yield split, f"{place.lower()}_{mask.stem}", folder / "images_png" / mask.name, mask, None


def uavid(arguments):
    """As `isprs`, of UAVid: uavid_train and uavid_val, each with folders of sequences."""
    for split in ("train", "val"):
        folder = pathlib.Path(arguments.source) / f"uavid_{split}"
        for sequence in sorted(path for path in folder.glob("seq*") if path.is_dir()):
            for mask in image_files.list_images(sequence / "Labels"):
                image = sequence / "Images" / mask.name
                yield split, f"{sequence.name}_{mask.stem}", image, mask, _TILE if split == "train" else None


SETS = {
    "loveda": (loveda, None),
    "potsdam": (isprs, ISPRS_PALETTE),
    "vaihingen": (isprs, ISPRS_PALETTE),
    "uavid": (uavid, UAVID_PALETTE),
}


def _copy(source, target):
    if not target.exists():
        with files.whole(target, sync=False) as temporary:
            shutil.copyfile(source, temporary)


def _cut(image, mask, target_images, target_masks, name, stride):
    """Cuts an image and its mask into tiles. Returns: how many."""
    pixels = reader.read(image)
    with Image.open(mask) as opened:
        labels = opened.copy()
    if labels.size != pixels.shape[1::-1]:
        raise UserError(f"{mask} has {labels.size[1]} x {labels.size[0]} pixels, {image} {pixels.shape[:2]}")
    count = 0
    for y in starts(pixels.shape[0], _TILE, _TILE - stride):
        for x in starts(pixels.shape[1], _TILE, _TILE - stride):
            tile = pixels[y : y + _TILE, x : x + _TILE]
            encoded = cv2.imencode(".png", tile[..., ::-1])[1]
            files.write_bytes(target_images / f"{name}__{x}__{y}.png", encoded.tobytes(), sync=False)
            with files.whole(target_masks / f"{name}__{x}__{y}.png", sync=False) as temporary:
                labels.crop((x, y, x + tile.shape[1], y + tile.shape[0])).save(temporary)
            count += 1
    return count


def lay_out(arguments):
    """Writes the set. Args: arguments, of the command. Returns: {split: number of images}."""
    entries, palette = SETS[arguments.set]
    output = pathlib.Path(arguments.output)
    counts = {"train": 0, "val": 0}
    for split, name, image, mask, stride in entries(arguments):
        folders = output / split / "images", output / split / "masks"
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        if not image.is_file():
            raise UserError(f"{mask}: there is no image {image}")
        if stride is None:
            for source, folder in zip((image, mask), folders, strict=True):
                _copy(source, folder / f"{name}{source.suffix.lower()}")
            counts[split] += 1
        else:
            counts[split] += _cut(image, mask, *folders, name, stride)
    if palette:
        files.write_text(output / "palette.txt", "".join(f"{line}\n" for line in palette))
    return counts


def main(argv=None):
    """The command. Returns: exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    for option, text in (
        ("--source", "folder of the release, of loveda and uavid"),
        ("--images", "folder of images, of the ISPRS sets"),
        ("--masks", "folder of whole masks, of the ISPRS sets"),
        ("--eroded", "folder of masks with eroded borders, of the ISPRS sets"),
    ):
        parser.add_argument(option, metavar="DIR", help=text)
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write to")
    arguments = parser.parse_args(argv)
    needed = ("images", "masks", "eroded") if SETS[arguments.set][0] is isprs else ("source",)
    missing = [name for name in needed if not getattr(arguments, name)]
    if missing:
        parser.error(f"{arguments.set} needs {', '.join(f'--{name}' for name in missing)}")
    try:
        counts = lay_out(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(", ".join(f"{split}: {count} images" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
