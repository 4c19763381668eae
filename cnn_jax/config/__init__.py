"""Configurations: loading a stage, refusing impossible values, comparing with the one in a workdir."""

from cnn_jax.config.comparison import FREE, check_same, difference, with_defaults, write
from cnn_jax.config.listing import as_json, listing
from cnn_jax.config.loading import describe, load, make_stages_importable, stages_hint, use_network
from cnn_jax.config.phases import phases
from cnn_jax.config.validation import keys_of, unknown_key, validate
from cnn_jax.keys import flatten
from cnn_jax.utils.source import ROOT

__all__ = [
    "FREE",
    "ROOT",
    "as_json",
    "check_same",
    "describe",
    "difference",
    "flatten",
    "keys_of",
    "listing",
    "load",
    "make_stages_importable",
    "phases",
    "stages_hint",
    "unknown_key",
    "use_network",
    "validate",
    "with_defaults",
    "write",
]
