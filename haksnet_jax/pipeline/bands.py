"""What a configuration and the training images say of bands, limits, nodata, means and deviations, in one place."""

import os
from collections.abc import Sequence
from typing import Any

import ml_collections

from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.settings import PIXEL_MEAN, ImageSettings


def settings_of(config: ml_collections.ConfigDict) -> ImageSettings:
    """ImageSettings of `config.data` (keys bands, limits, nodata; empty or absent: not given). Raises: UserError."""
    data = config.data
    bands, limits = (tuple(data.get(name) or ()) or None for name in ("bands", "limits"))
    return image_settings.checked(image_settings.ImageSettings(bands, limits, data.get("nodata")), "data.")


def completed(
    config: ml_collections.ConfigDict,
    folders: Sequence[str | os.PathLike[str]] = (),
    records: str | os.PathLike[str] | None = None,
) -> ml_collections.ConfigDict:
    """The configuration with what the training images say: channels, limits of deep values, means and deviations.

    Args:
      config: the experiment; `data.bands`, `limits`, `nodata` and `model.in_channels`, `pixel_mean`, `pixel_std`.
      folders: of training images, which may be none (generated scenes; a plan without data).
      records: folder of records that were built from images, or None.

    Returns:
      A copy in which all of these have values that fit each other. Bands, limits and nodata are those that
      prediction needs.

    Raises:
      UserError: settings that cannot be used, or that are not those of the records.
    """
    given, paths = settings_of(config), []
    kept: dict[str, Any] = {}
    if records is not None:
        settings, kept = image_settings.read_folder(records)
        if image_settings.merged(given, settings) != settings:
            raise UserError(
                f"the records in {records} were built with {image_settings.told(settings)}, the configuration asks for "
                f"{image_settings.told(given)} (data.bands, data.limits, data.nodata): build them anew, or leave these "
                "empty"
            )
        given = settings
    elif folders:
        kept = image_settings.read_folder(folders[0])[1]
        paths = [path for folder in folders for path in image_files.list_images(folder)]
        given = scaling.for_images(paths, given)
    channels = given.num_channels
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.in_channels = channels
        config.data.bands = () if given.bands is None else tuple(given.bands)
        config.data.limits = () if given.limits is None else tuple(given.limits)
        config.data.nodata = given.nodata
        # Means of colours say nothing of bands that were chosen, even if they are three.
        unstated = given.bands is not None and tuple(config.model.pixel_mean) == PIXEL_MEAN and "mean" in kept
        if unstated or len(config.model.pixel_mean) != channels or len(config.model.pixel_std) != channels:
            config.model.pixel_mean, config.model.pixel_std = _statistics(config, kept, paths, given)
    return config


def _statistics(config, kept, paths, settings):
    """(means, deviations) of the bands, tuples: those kept with the data, else measured."""
    channels = settings.num_channels
    values = [kept.get(name) for name in ("mean", "std")]
    if all(isinstance(value, list) and len(value) == channels for value in values):
        mean, std = (tuple(map(float, value)) for value in values)
        return mean, tuple(value or 1.0 for value in std)
    if not paths:
        raise UserError(
            f"model.pixel_mean and model.pixel_std: expected a number for each of the {channels} bands, got "
            f"{len(config.model.pixel_mean)} and {len(config.model.pixel_std)}: state them"
        )
    mean, std = scaling.band_statistics(paths, settings)
    # A band of one single value has no deviation; 1 leaves it as it is.
    return tuple(mean.round(3).tolist()), tuple(value if value > 0 else 1.0 for value in std.round(3).tolist())


def model_info(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What model.json says of how images are read, as the member `images`. Args: config, completed."""
    return {"images": image_settings.to_json(settings_of(config))}
