"""Hosts, and the mesh of their devices."""
