"""python -m data.hrsc2016: the command `haksnet build hrsc2016`, in a checkout."""

from haksnet_jax.cli import program

if __name__ == "__main__":
    program.run_as("build", "hrsc2016")
