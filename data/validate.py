"""python -m data.validate: the command `haksnet validate`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("validate")
