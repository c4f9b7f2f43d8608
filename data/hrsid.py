"""python -m data.hrsid: the command `haksnet build hrsid`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("build", "hrsid")
