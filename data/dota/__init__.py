"""DOTA: tiles from its scenes, and TFDS data sets from folders in its format."""
