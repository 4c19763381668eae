"""baseline: six convolutions in three blocks, a hidden layer of 128; no BatchNorm, no dropout.

python -m cnn_jax.main --config=configs/baseline.py --workdir=/tmp/baseline
"""

from configs import basic


def get_config():
    config = basic.get_config()
    config.model.convs_per_block = 2
    config.model.hidden = (128,)
    return config
