"""python -m data.fair1m: the command `haksnet build fair1m`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("build", "fair1m")
