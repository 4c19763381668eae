"""The keys of a configuration for readers: values, meanings, and as JSON."""

import json
import shlex

from ml_collections import ConfigDict

from cnn_jax.config.validation import keys_of
from cnn_jax.keys import flatten


def listing(config: ConfigDict) -> str:
    """Returns two lines per key: its value as a flag, then its meaning and the values that it may have."""
    values = flatten(config)
    return "\n".join(
        f"--config.{name}={shlex.quote(str(values[name]))}\n    {key.help} ({key.rule.meaning})"
        for name, key in keys_of(values["model.name"]).items()
    )


def as_json(config: ConfigDict) -> str:
    """Returns the text of config.json."""
    return json.dumps(config.to_dict(), indent=2) + "\n"
