"""Sections of a configuration as the settings of the code that they steer.

Settings are NamedTuples beside that code. Their fields are the section's keys; a key that a configuration from before
it lacks has the field's default.
"""

from typing import Any

import ml_collections

from haksnet_jax.errors import UserError


def read(config: ml_collections.ConfigDict, section: str, *kinds: Any) -> Any:
    """The settings in a section of a configuration.

    Args:
      config: the experiment.
      section: name of the section, which may be absent.
      *kinds: the NamedTuples whose fields are the section's keys, each key in one of them.

    Returns:
      One of each kind: a single one for one kind, else a list.

    Raises:
      UserError: a key that none of them has.
    """
    given = dict(config.get(section, None) or {})
    known = [name for kind in kinds for name in kind._fields]
    unknown = given.keys() - set(known)
    if unknown:
        raise UserError(f"{section}.{min(unknown)}: expected one of {', '.join(known)}")
    given = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in given.items()}
    made = [kind(**{name: given[name] for name in kind._fields if name in given}) for kind in kinds]
    return made[0] if len(made) == 1 else made
