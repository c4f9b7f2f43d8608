"""Version of the package, read by the build and by result cards."""

__version__ = "0.1.0"
