"""The command that trains: python -m haksnet_jax.main --config=FILE [--workdir=DIR] [--config.KEY=VALUE ...]

On several hosts the same command is started on each; see docs/many_hosts.md.
"""

import logging as python_logging
import os
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file, see configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; a run that it holds is resumed. Default: runs/NAME_OF_THE_CONFIG."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "ADDRESS:PORT of host 0, for a run of several hosts that no cluster describes (and see docs)."
)
_NUM_HOSTS = flags.DEFINE_integer(
    "num_hosts", None, "Processes of the run; 1 trains with this one alone, whatever the cluster says.", lower_bound=1
)
_HOST = flags.DEFINE_integer("host", None, "Number of this process, from 0.", lower_bound=0)
_JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", 300.0, "Seconds that hosts wait for each other at the start.", lower_bound=1.0
)

# EX_TEMPFAIL of sysexits.h, "try again later": what a scheduler that restarts failed jobs restarts, told from an error.
STOPPED = 75


def main(argv):
    """Trains and evaluates; mistakes of use end with one sentence and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)

    from haksnet_jax import checkpoint, devices, files, hosts  # (flags are checked before JAX is loaded)
    from haksnet_jax.pipeline.loader import PipelineError
    from haksnet_jax.training.loop import Stopped, TrainingError, train_and_evaluate

    logging.get_absl_handler().addFilter(checkpoint.log_filter)
    devices.enable_compilation_cache()
    config = _CONFIG.value
    workdir = _WORKDIR.value or os.path.join("runs", config.name)
    membership = None
    try:
        membership = hosts.find_membership(
            _COORDINATOR.value, _NUM_HOSTS.value, _HOST.value, timeout=_JOIN_TIMEOUT.value
        )
        if membership is not None and membership.host:
            # One host tells how it goes; of the others, what goes wrong there.
            logging.set_verbosity(logging.WARNING)
            logging.get_absl_handler().setFormatter(python_logging.Formatter(f"host {membership.host}: %(message)s"))
        hosts.join(membership, hosts.facts_of(config, workdir), timeout=_JOIN_TIMEOUT.value)
        card = train_and_evaluate(config, workdir)
        hosts.leave()
    except Stopped as stopped:
        hosts.leave()
        logging.info("%s", stopped)
        sys.exit(STOPPED)
    except (
        TrainingError,
        checkpoint.CheckpointError,
        hosts.HostsError,
        PipelineError,
        ValueError,
        OSError,
    ) as error:
        if membership is not None and not isinstance(error, (TrainingError, hosts.HostsError, PipelineError)):
            hosts.wait_for_news()  # JAX and Orbax raise some of the others where another host is gone
        if os.environ.get("HAKSNET_TRACEBACK"):
            if membership is None:
                raise
            traceback.print_exc()
        message = f"error: {error}\n(HAKSNET_TRACEBACK=1 shows where)"
        if membership is None and not isinstance(error, PipelineError):
            sys.exit(message)
        # At once: an orderly end would wait for the other hosts, which wait for this one, or for a read that hangs.
        print(message if membership is None else f"host {membership.host}: {message}", file=sys.stderr, flush=True)
        hosts.leave(str(error))
        os._exit(1)
    except BaseException as error:
        if membership is None:
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        if not interrupted:
            hosts.wait_for_news()
        traceback.print_exc()
        hosts.leave(f"{type(error).__name__}: {error}")
        os._exit(130 if interrupted else 1)  # (as above)
    if membership is not None and membership.host:
        return
    print(f"result card: {files.join(workdir, 'result.md')}")
    if "mean" in card and card["mean"]["AP50_voc12"] is not None:
        print(f"AP50 {card['mean']['AP50_voc12']:.3f}")
        picture = card.get("picture")
        if picture:
            print(f"picture: {picture}")


def run():
    """Entry point of the installed command."""
    flags.mark_flag_as_required("config")
    app.run(main)


if __name__ == "__main__":
    run()
