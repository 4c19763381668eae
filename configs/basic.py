"""basic: three convolutions and one dense layer, the least that sees images. It underfits.

python -m cnn_jax.main --config=configs/basic.py --workdir=/tmp/basic
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.convs_per_block = 1
    config.model.hidden = ()
    return config
