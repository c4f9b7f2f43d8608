"""The command that trains: python -m haksnet_jax.main --config=FILE [--workdir=DIR] [--config.KEY=VALUE ...]"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file, see configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; a run that it holds is resumed. Default: runs/NAME_OF_THE_CONFIG."
)


def main(argv):
    """Trains and evaluates; mistakes of use end with one sentence and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    # Orbax tells its whole inner life at this level.
    logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname or record.levelname != "INFO")

    from haksnet_jax import checkpoint, devices  # (flags are checked before JAX is loaded)
    from haksnet_jax.train import TrainingError, train_and_evaluate

    devices.enable_compilation_cache()
    config = _CONFIG.value
    workdir = _WORKDIR.value or os.path.join("runs", config.name)
    try:
        card = train_and_evaluate(config, workdir)
    except (TrainingError, checkpoint.CheckpointError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        if os.environ.get("HAKSNET_TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(HAKSNET_TRACEBACK=1 shows where)")
    print(f"result card: {os.path.join(workdir, 'result.md')}")
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
