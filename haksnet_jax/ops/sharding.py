"""Operations on a batch that several devices share."""

import math

import jax


def over_mesh(function, *arrays, split=None, summed=False):
    """Runs `function` on every device of the ambient mesh with its share of the batch.

    What is under it asks nothing of the other devices: a loop over images, which ends when the last of them is done,
    ends on each device when its own are done. Without a mesh, inside shard_map, or where the devices do not divide the
    batch, this is `function(*arrays)`.

    Args:
      function: of the arrays; each of its results has a batch axis, or is a sum over the batch.
      *arrays: arrays; the first `split` have a leading batch axis, the others are the same on each device.
      split: how many arrays have a batch axis; None: all of them.
      summed: whether the results are sums over the batch; one answer for all, or a tuple of answers.

    Returns:
      The results for the whole batch: sharded over the batch axis, or summed over the devices.
    """
    split = len(arrays) if split is None else split
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual
    )
    num_devices = math.prod(mesh.shape[name] for name in axes)
    if num_devices == 1 or arrays[0].shape[0] % num_devices:
        return function(*arrays)
    return jax.shard_map(
        lambda *shares: jax.tree.map(
            lambda is_sum, result: jax.lax.psum(result, axes) if is_sum else result, summed, function(*shares)
        ),
        in_specs=(jax.P(axes),) * split + (jax.P(),) * (len(arrays) - split),
        out_specs=jax.tree.map(lambda is_sum: jax.P() if is_sum else jax.P(axes), summed),
        axis_names=set(axes),
        check_vma=False,
    )(*arrays)
