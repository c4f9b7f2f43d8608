"""python -m haksnet_jax COMMAND: the program `haksnet`."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.entry()
