"""quickstart: the ladder's network with BatchNorm on 1,797 handwritten digits, which come with scikit-learn.

python -m cnn_jax.main --config=quickstart --workdir=/tmp/quickstart
"""

from cnn_jax.configs import batchnorm


def get_config():
    config = batchnorm.get_config()
    config.data.name = "digits"
    config.epochs = 10
    return config
