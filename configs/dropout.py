"""dropout: a quarter of the units dropped after each block and after the hidden layer.

python -m cnn_jax.main --config=configs/dropout.py --workdir=/tmp/dropout

The reference has .8083, on all 50,000 images; ours has not been measured yet.
Expect .533 +- .035 (2 seeds) with --config.data.train_examples=5000 --config.epochs=10: test accuracy on CIFAR-10
re-encoded as JPEG, some 5 minutes on 2 CPU cores (reports/ladder_5000.json).
"""

from configs import batchnorm


def get_config():
    config = batchnorm.get_config()
    config.model.dropout = (0.25, 0.25, 0.25, 0.25)
    return config
