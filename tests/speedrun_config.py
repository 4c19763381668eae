"""The speed run in seconds on a CPU: a narrow network, 200 digits, 2 epochs of 12.5 steps, every ingredient on.

python -m cnn_jax.main --config=tests/speedrun_config.py --workdir=/tmp/small_speedrun
"""

from configs import speedrun


def get_config():
    config = speedrun.get_config()
    config.epochs = 2
    config.steps_per_call = 10
    config.batch_size = 16
    config.dtype = "float32"
    config.tensorboard = "off"
    config.data.update({"name": "digits", "train_examples": 200, "validation": 100, "image_size": 8})
    config.model.widths = (8,)
    # Of 2,000 images to a step, for 16: gradients are as large, steps are more.
    config.optimizer.update({"learning_rate": 0.1, "groups": (("bias", 20.0), ("head", 10.0))})
    return config
