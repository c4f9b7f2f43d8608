"""python -m data.ssdd: the command `haksnet build ssdd`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("build", "ssdd")
