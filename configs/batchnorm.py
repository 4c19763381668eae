"""batchnorm: BatchNorm after every ReLU.

python -m cnn_jax.main --config=configs/batchnorm.py --workdir=/tmp/batchnorm

The reference has .7883, on all 50,000 images; ours has not been measured yet.
Expect .537 +- .015 (2 seeds) with --config.data.train_examples=5000 --config.epochs=10: test accuracy on CIFAR-10
re-encoded as JPEG, some 5 minutes on 2 CPU cores (reports/ladder_5000.json).
"""

from configs import baseline


def get_config():
    config = baseline.get_config()
    config.model.batch_norm = True
    return config
