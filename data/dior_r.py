"""python -m data.dior_r: the command `haksnet build dior_r`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("build", "dior_r")
