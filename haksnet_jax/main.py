"""python -m haksnet_jax.main --config=FILE [--workdir=DIR] [--config.KEY=VALUE ...]: the command `train`.

On several hosts the same command is started on each; see docs/many_hosts.md.
"""

import logging as python_logging
import os
import sys
import traceback
from typing import TYPE_CHECKING

from absl import logging

from haksnet_jax.cli import program

if TYPE_CHECKING:
    import ml_collections

# EX_TEMPFAIL of sysexits.h, "try again later": what a scheduler that restarts failed jobs restarts, told from an error.
STOPPED = 75


def train(
    config: "ml_collections.ConfigDict",
    workdir: str | None = None,
    *,
    coordinator: str | None = None,
    num_hosts: int | None = None,
    host: int | None = None,
    join_timeout: float = 300.0,
    join_token: str | None = None,
    resume: str = "same",
) -> int:
    """Joins the other hosts, trains and evaluates.

    Args:
      config: the experiment, a ConfigDict.
      workdir: folder of the run; default: runs/NAME_OF_THE_CONFIG.
      coordinator, num_hosts, host: of a run of several hosts that no cluster describes, see `hosts.find_membership`.
      join_timeout: seconds that hosts wait for each other.
      join_token: text that the run's hosts share; None for what `hosts.find_membership` finds.
      resume: "same", or "anyway" to go on with a run of other data, classes or model (`training.resume`).

    Returns:
      Exit status: 0, 1 for what a user can mend, or STOPPED.
    """
    # (here: options are checked before JAX is loaded)
    from haksnet_jax.distributed import hosts
    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.errors import UserError
    from haksnet_jax.pipeline.batches import PipelineError
    from haksnet_jax.training import checkpoint, loop
    from haksnet_jax.training.log import quiet_libraries
    from haksnet_jax.training.stop import Stopped

    quiet_libraries()
    devices.enable_compilation_cache()
    workdir = workdir or os.path.join("runs", config.name)
    membership = None
    try:
        membership = hosts.find_membership(coordinator, num_hosts, host, token=join_token, timeout=join_timeout)
        if membership is not None and membership.host:
            # One host tells how it goes; of the others, what goes wrong there.
            logging.set_verbosity(logging.WARNING)
            logging.get_absl_handler().setFormatter(python_logging.Formatter(f"host {membership.host}: %(message)s"))
        hosts.join(membership, hosts.facts_of(config, workdir), timeout=join_timeout)
        card = loop.run(config, workdir, resume_policy=resume)
        hosts.leave()
    except Stopped as stopped:
        hosts.leave()
        logging.info("%s", stopped)
        return STOPPED
    except (ValueError, OSError) as error:
        if membership is None and not isinstance(error, PipelineError):
            raise  # (`program.guarded` says what a user can mend)
        is_ours = isinstance(error, UserError)
        if membership is not None and (not is_ours or isinstance(error, checkpoint.CheckpointError)):
            hosts.wait_for_news()  # JAX and Orbax raise some of the others where another host is gone
        if os.environ.get("HAKSNET_TRACEBACK"):
            traceback.print_exc()
        message = f"error: {error}"
        print(message if membership is None else f"host {membership.host}: {message}", file=sys.stderr, flush=True)
        # At once: an orderly end would wait for the other hosts, which wait for this one, or for a read that hangs.
        hosts.leave(str(error))
        os._exit(program.FAILED)
    except BaseException as error:
        if membership is None:
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        if not interrupted:
            hosts.wait_for_news()
        traceback.print_exc()
        hosts.leave(f"{type(error).__name__}: {error}")
        os._exit(program.STOPPED if interrupted else program.FAILED)  # (as above)
    if membership is None or not membership.host:
        _tell(card, workdir)
    return program.OK


def _tell(card, workdir):
    """Prints where the result card is, and the last evaluation of it."""
    from haksnet_jax import files

    print(f"result card: {files.join(workdir, 'result.md')}")
    for name, value in card.get("last_evaluation", {}).items():
        print(f"{name.removesuffix('_voc12')} {value:.3f}")
    if "picture" in card:
        print(f"picture: {card['picture']}")


if __name__ == "__main__":
    program.run_as("train")
