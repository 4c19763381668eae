"""dropout: a quarter of the units dropped after each block and after the hidden layer.

python -m cnn_jax.main --config=configs/dropout.py --workdir=/tmp/dropout
"""

from configs import batchnorm


def get_config():
    config = batchnorm.get_config()
    config.model.dropout = (0.25, 0.25, 0.25, 0.25)
    return config
