"""dropout: dropout of a quarter of the units, after each block and after the hidden layer.

python -m cnn_jax.main --config=configs/dropout.py --workdir=/tmp/dropout

The reference has .8083, on all 50,000 images; ours has not been measured yet.
Expect .557 [.526, .588] (mean and 95 % interval of n = 3 seeds, commit 3b2a271) with
--config.data.train_examples=5000 --config.epochs=10: test accuracy on CIFAR-10 re-encoded as JPEG, 2 minutes on one
CPU core (reports/ladder_5000.json).
"""

from cnn_jax.configs import batchnorm


def get_config():
    config = batchnorm.get_config()
    config.model.dropout = (0.25, 0.25, 0.25, 0.25)
    return config
