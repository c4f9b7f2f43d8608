"""A model as a file that runs without this package.

`programs` says what is exported, `forms` writes it, `comparison` runs it beside the live model before anyone gets it.
"""
