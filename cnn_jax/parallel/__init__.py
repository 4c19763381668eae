"""Devices: where arrays are, and how steps and seeds are dispatched."""
