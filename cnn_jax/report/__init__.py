"""Figures, a diagram of the network, and the HTML report of an evaluation."""
