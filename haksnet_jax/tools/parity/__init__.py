"""Comparison with recorded outputs of the reference, part by part.

`python -m haksnet_jax parity --goldens=DIR` prints a table with a row for everything that is compared. A fixture is a
pair of files NAME.json and NAME.npz as the reference's recorder writes them; sizes, seeds, weights and settings are
read from it, so that fixtures recorded with others are checked in the same way.
"""
