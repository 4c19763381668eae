"""batchnorm: BatchNorm after every ReLU.

python -m cnn_jax.main --config=configs/batchnorm.py --workdir=/tmp/batchnorm
"""

from configs import baseline


def get_config():
    config = baseline.get_config()
    config.model.batch_norm = True
    return config
