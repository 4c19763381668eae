"""basic: three convolutions and one dense layer, the least that sees images. It underfits.

python -m cnn_jax.main --config=configs/basic.py --workdir=/tmp/basic

The reference says "underfits", on all 50,000 images; ours has not been measured yet.
Expect .523 +- .007 (2 seeds) with --config.data.train_examples=5000 --config.epochs=10: test accuracy on CIFAR-10
re-encoded as JPEG, some 5 minutes on 2 CPU cores (reports/ladder_5000.json).
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.convs_per_block = 1
    config.model.hidden = ()
    return config
