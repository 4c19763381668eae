"""Utilities that are independent of images and networks."""
