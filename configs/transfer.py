"""transfer: a new head on a frozen InceptionResNetV2 with ImageNet weights; images of 299 pixels.

python -m cnn_jax.main --config=transfer --workdir=/tmp/transfer

The weights (219 MB) are downloaded once; --config.model.weights=PATH reads them from a file instead.

Test accuracy on all 50,000 images: .9181 in the reference; ours, with the published weights, is to be measured. The
reference needs 262 s per epoch (Tesla P100), because it computes the features in every epoch; here they are computed
once.
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
