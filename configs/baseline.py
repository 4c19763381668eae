"""baseline: six convolutions in three blocks and a hidden layer of 128 units, without BatchNorm or dropout.

python -m cnn_jax.main --config=baseline --workdir=/tmp/baseline

Test accuracy on all 50,000 images: the reference peaks near .72 and then collapses to .10; ours is to be measured.
Expect .465 [.454, .475] (mean and 95 % interval of n = 5 seeds, commit 3b2a271) with --config.data.train_examples=5000
--config.epochs=10: test accuracy on CIFAR-10 re-encoded as JPEG, 5 minutes on one core of a shared CPU server
(reports/ladder_5000.json).
"""

from cnn_jax.configs import basic


def get_config():
    config = basic.get_config()
    config.model.convs_per_block = 2
    config.model.hidden = (128,)
    return config
