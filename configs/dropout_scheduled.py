"""dropout_scheduled: dropout rates that increase from block to block.

python -m cnn_jax.main --config=dropout_scheduled --workdir=/tmp/dropout_scheduled

Test accuracy on all 50,000 images: .8083 in the reference; ours is to be measured.
Expect .543 [.529, .558] (mean and 95 % interval of n = 5 seeds, commit 3b2a271) with --config.data.train_examples=5000
--config.epochs=10: test accuracy on CIFAR-10 re-encoded as JPEG, 6 minutes on one core of a shared CPU server
(reports/ladder_5000.json).
"""

from cnn_jax.configs import dropout


def get_config():
    config = dropout.get_config()
    config.model.dropout = (0.2, 0.3, 0.4, 0.5)
    return config
