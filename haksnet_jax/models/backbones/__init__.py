"""Backbones: `channels`, `strides`, and a call that gives maps."""
