"""python -m data.dota.build: the command `haksnet build`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("build")
