"""batchnorm: BatchNorm after every ReLU.

python -m cnn_jax.main --config=batchnorm --workdir=/tmp/batchnorm

Test accuracy on all 50,000 images: .7883 in the reference; ours is to be measured.
Expect .528 [.469, .587] (mean and 95 % interval of n = 5 seeds, commit 3b2a271) with --config.data.train_examples=5000
--config.epochs=10: test accuracy on CIFAR-10 re-encoded as JPEG, 6 minutes on one core of a shared CPU server
(reports/ladder_5000.json).
"""

from cnn_jax.configs import baseline


def get_config():
    config = baseline.get_config()
    config.model.batch_norm = True
    return config
