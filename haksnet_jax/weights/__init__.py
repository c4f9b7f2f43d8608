"""Weights from and to other programs: reading without running, tables of names, conversion."""
