"""baseline: six convolutions in three blocks and a hidden layer of 128 units, without BatchNorm or dropout.

python -m cnn_jax.main --config=configs/baseline.py --workdir=/tmp/baseline

The reference peaks near .72 and then collapses to .10, on all 50,000 images; ours has not been measured yet.
Expect .462 [.449, .475] (mean and 95 % interval of n = 3 seeds, commit 3b2a271) with
--config.data.train_examples=5000 --config.epochs=10: test accuracy on CIFAR-10 re-encoded as JPEG, 2 minutes on one
CPU core (reports/ladder_5000.json).
"""

from cnn_jax.configs import basic


def get_config():
    config = basic.get_config()
    config.model.convs_per_block = 2
    config.model.hidden = (128,)
    return config
