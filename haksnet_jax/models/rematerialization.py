"""What is kept for the gradient where the rest is computed again.

A scanned block keeps everything that its gradient might read, in the type that it happened to have: the float32 copies
inside a normalisation among them, each written once and read once through main memory. A block under `jax.checkpoint`
with the policy `keep_marked` keeps its input and what is marked as worth it: results of convolutions and products,
and sums over the batch, which devices would have to meet for again. What lies between is cheap and computed anew.
"""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept for the gradient"

keep_marked = jax.checkpoint_policies.save_only_these_names(_KEPT)


def mark_kept(tree: Any) -> Any:
    """The tree, its arrays marked for `keep_marked`; nothing changes elsewhere."""
    return jax.tree.map(lambda array: checkpoint_name(array, _KEPT), tree)
