"""Images moved by a matrix, on the device that trains with them."""

import jax
import jax.numpy as jnp

from haksnet_jax.target import over_mesh


def warp_affine(images: jax.Array, matrices: jax.Array, image_size: jax.Array) -> jax.Array:
    """What OpenCV's `warpAffine` does, but for its fixed-point weights: bilinear, black from outside.

    A gather of four pixels for each: made for GPUs and CPUs. TPUs gather slowly. Padding stays as it is.

    Args:
      images: [B, H, W, C] uint8.
      matrices: [B, 2, 3] float32, from a place (column, row) of the result to one of the image.
      image_size: [B, 2] int32 rows and columns of the content. What lies beyond it counts as black, and stays itself.

    Returns:
      [B, H, W, C] uint8.
    """
    return over_mesh(jax.vmap(_warp), images, matrices, image_size)


def _warp(image, matrix, image_size):
    height, width, num_channels = image.shape
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij"
    )
    x = matrix[0, 0] * columns + matrix[0, 1] * rows + matrix[0, 2]
    y = matrix[1, 0] * columns + matrix[1, 1] * rows + matrix[1, 2]
    left, top = jnp.floor(x), jnp.floor(y)
    pixels = image.reshape(-1, num_channels)
    total = jnp.zeros(image.shape, jnp.float32)
    for row, share_of_row in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_of_column in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (row >= 0) & (row < image_size[0]) & (column >= 0) & (column < image_size[1])
            place = jnp.where(inside, row.astype(jnp.int32) * width + column.astype(jnp.int32), 0)
            share = jnp.where(inside, share_of_row * share_of_column, 0.0)
            total += share[..., None] * jnp.take(pixels, place, axis=0).astype(jnp.float32)
    content = (rows < image_size[0]) & (columns < image_size[1])
    return jnp.where(content[..., None], jnp.round(total).astype(jnp.uint8), image)
