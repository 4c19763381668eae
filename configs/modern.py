"""modern: the same network, trained by the recipe of today: a schedule, label smoothing, less dropout, averaging.

python -m cnn_jax.main --config=modern --workdir=/tmp/modern

Test accuracy on all 50,000 images: to be measured; the reference has no such stage. docs/modern.md says how the recipe
was chosen, on validation images alone, and what each ingredient contributes.
"""

from cnn_jax.configs import augment


def get_config():
    config = augment.get_config()
    config.batch_size = 64
    config.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.05
    config.optimizer.nesterov = True
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 5e-4
    config.model.bn_momentum = 0.9
    config.model.dropout = (0.0, 0.1, 0.2, 0.3)
    config.average.decay = 0.99
    config.average.ramp = 1.0
    config.eval.mirror = True
    return config
