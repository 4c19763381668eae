"""transfer: a new head on a frozen InceptionResNetV2 that was trained on ImageNet; images of 299 pixels.

python -m cnn_jax.main --config=configs/transfer.py --workdir=/tmp/transfer

The weights (219 MB) are downloaded once; --config.model.weights=PATH reads them from a file instead. The reference has
.9181 on all 50,000 images, at 262 s per epoch (Tesla P100), because it computed the features in every epoch; here they
are computed once. Ours has not been measured with the published weights yet.
"""

from cnn_jax.configs import base


def get_config():
    config = base.get_config("inception_resnet_v2")
    config.model.trainable = "head"
    config.data.update({"image_size": 299, "mean": (), "std": ()})
    config.optimizer.update({"name": "adam", "learning_rate": 1e-3})
    config.batch_size = 300
    config.eval_batch_size = 50
    config.epochs = 10
    return config
