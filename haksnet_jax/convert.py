"""python -m haksnet_jax.convert: the command `convert` under its published name."""

import sys

from haksnet_jax.weights.convert import main

if __name__ == "__main__":
    sys.exit(main())
