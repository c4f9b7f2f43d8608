"""Cuts scenes and their labels into tiles.

  python -m data.dota.split --images=train/images --labels=train/labelTxt --output=tiles/train
  python -m data.dota.split --images=test/images --output=tiles/test --protocol=multi_scale

The work is done by haksnet_jax.splitting, whose text says what is written.
"""

import sys

from haksnet_jax.preparation.splitting import main

if __name__ == "__main__":
    sys.exit(main())
