"""Evaluation of a trained network on labelled images."""
