"""transfer_finetune: transfer_lite with a second phase that also trains the upper blocks, at a lower learning rate.

python -m cnn_jax.main --config=transfer_finetune --workdir=/tmp/transfer_finetune

Expect .788 (n = 1 seed; .778 without the second phase) with --config.data.train_examples=5000
--config.finetune.epochs=3: test accuracy on CIFAR-10 re-encoded as JPEG, 2 CPU cores (reports/transfer_lite.json).
"""

from cnn_jax.configs import transfer_lite


def get_config():
    config = transfer_lite.get_config()
    config.finetune.update({"epochs": 5, "trainable": "head|block1[2-6]|top", "learning_rate": 1e-4})
    config.optimizer.groups = (("backbone", 0.1),)  # a lower learning rate than the head's
    return config
