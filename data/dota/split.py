"""python -m data.dota.split: the command `haksnet split`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("split")
