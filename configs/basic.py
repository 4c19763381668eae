"""basic: three convolutions and one dense layer. It underfits.

python -m cnn_jax.main --config=basic --workdir=/tmp/basic

Test accuracy on all 50,000 images: "underfits" in the reference; ours is to be measured.
Expect .534 [.527, .540] (mean and 95 % interval of n = 5 seeds, commit 3b2a271) with --config.data.train_examples=5000
--config.epochs=10: test accuracy on CIFAR-10 re-encoded as JPEG, 2 minutes on one core of a shared CPU server
(reports/ladder_5000.json).
"""

from cnn_jax.configs import base


def get_config():
    config = base.get_config()
    config.model.convs_per_block = 1
    config.model.hidden = ()
    return config
