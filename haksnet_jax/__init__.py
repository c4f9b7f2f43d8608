"""HAKSNet and Oriented R-CNN in JAX: oriented object detection in aerial images."""

from haksnet_jax.version import __version__

__all__ = ["__version__"]
