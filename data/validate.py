"""Checks a data set in DOTA's format: every problem with file and line, counted; exit status 1 if something is lost.

  python -m data.validate --images=DIR --labels=DIR --classes=dota10 --sheet=sheet.png

The work is done by haksnet_jax.validation, whose text says what is looked for.
"""

import sys

from haksnet_jax.preparation.validation import main

if __name__ == "__main__":
    sys.exit(main())
