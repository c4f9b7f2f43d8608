"""python -m haksnet_jax.convert: the command `convert` under its published name."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("convert")
