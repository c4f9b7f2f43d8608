"""python -m haksnet_jax COMMAND"""

import sys

from haksnet_jax.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
