"""The config keys of each network."""

from cnn_jax import models
from cnn_jax.errors import UserError
from cnn_jax.keys import Key, keys_of_class


def network_keys(name: str) -> dict[str, Key]:
    """Returns the keys that a network adds to `config.model`: those declared on its class.

    Raises:
      UserError: there is no network of this name.
    """
    if name not in models.MODELS:
        raise UserError(f"config.model.name is {name!r}; the networks are: {', '.join(models.MODELS)}.")
    return keys_of_class(models.MODELS[name])
