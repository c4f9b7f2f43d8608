"""A model ready to use on images of any size."""
