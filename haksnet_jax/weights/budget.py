"""What one file of weights may cost while it is read: memory and time for what surrounds the tensors, and their bytes.

A few bytes of a pickle can ask for gigabytes of copies, and none of the limits on single things prevents that. So every
copy is charged, none is given back, and the sum is bounded: real files need less than half of it.
"""

import time

from haksnet_jax.weights.errors import CheckpointError

MAX_METADATA_BYTES = 64 << 20  # 1,350 weights with the state of their optimizer need 23 MiB
MAX_SECONDS = 5.0  # of this thread, so that a busy machine refuses nothing; the same takes half a second
MAX_BYTES = 8 << 30  # tensors of one file, by default

# What CPython takes for them, rounded up.
SLOT = 16  # a reference in a list that grows
OBJECT = 64
ENTRY = 120  # of a dictionary
MEMBER = 80  # of a set
TENSOR = 600  # a description with its shape, strides and place


class Budget:
    """What one file may still cost.

    Args:
      max_bytes: the most that its tensors may claim together.
      file_bytes: size of the file.
    """

    def __init__(self, max_bytes: int, file_bytes: int) -> None:
        # Views may share storages (two names for one tensor), but only so often: a small file whose views add up to
        # terabytes is not a checkpoint.
        self._tensors = self._limit = min(max_bytes, 4 * file_bytes + (1 << 20))
        self._metadata = MAX_METADATA_BYTES
        self._deadline = time.thread_time() + MAX_SECONDS

    def take(self, num_bytes: int) -> None:
        """Charges the bytes of a tensor."""
        self._tensors -= num_bytes
        if self._tensors < 0:
            raise CheckpointError(f"its tensors claim more than {self._limit:,} bytes")

    def charge(self, num_bytes: int) -> None:
        """Charges memory for anything else, before it is taken."""
        self._metadata -= num_bytes
        if self._metadata < 0:
            raise CheckpointError(
                f"what surrounds its tensors takes more than {MAX_METADATA_BYTES >> 20} MiB, which no checkpoint needs"
            )

    def look_at_the_clock(self) -> None:
        """Ends the reading of a file that takes too long."""
        if time.thread_time() > self._deadline:
            raise CheckpointError(f"reading what surrounds its tensors takes more than {MAX_SECONDS:g} s")
