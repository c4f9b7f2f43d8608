"""What goes wrong with weights, as the user's to mend."""

from haksnet_jax.errors import UserError


class CheckpointError(UserError):
    """Weights that cannot be used; the message says which file, why, and what to do."""
