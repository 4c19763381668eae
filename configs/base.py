"""What all stages share: every setting of training, its default and its meaning.

A stage imports the one before it and changes a few lines; the command line changes any key:
`--config.optimizer.learning_rate=0.1`. The values here are those of the reference, a Keras study, where it gives them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,  # initial weights, order, augmentation, dropout; not the splits
            "seeds": 1,  # how many at once: seed, seed + 1, ...; each as if it ran alone
            "epochs": 50,
            "batch_size": 32,
            "eval_batch_size": 250,
            "steps_per_call": 50,  # steps between two looks at signals, progress and metrics
            "dtype": "float32",  # what layers compute in; "bfloat16" keeps float32 parameters
            "label_smoothing": 0.0,
            "on_nan": "stop",  # or "continue", to watch a run that has failed
            "diagnostics": False,  # gradient norm and share of dead ReLUs of every layer
            "profile": False,  # trace a chunk of steps into WORKDIR/profile, for TensorBoard or Perfetto
            "tensorboard": "tensorboardX",  # or "clu" (needs TensorFlow), or "off"
            "eval": {
                "epochs": 1,  # score the validation images at every so many epochs, and at the end
                "mirror": False,  # also their mirror images; here and in all that the run serves later
                "shift": 0,  # also moved by so many pixels
            },
            "checkpoint": {
                "epochs": 1,  # save at every so many epochs
                "minutes": 5.0,  # and when so much time has passed; 0: never for that reason
            },
            "data": {
                "name": "cifar10",  # or any image-classification set of tfds, "digits", "folder"
                "dir": "",  # of tfds: empty for TFDS_DATA_DIR or ~/tensorflow_datasets
                "train_examples": 0,  # 0: all that validation leaves; else a class-balanced subset
                "validation": 0.1,  # cut from train: a fraction, or a count; 0: none
                "split_seed": 0,
                "image_size": 32,  # resized on the device; 0: as stored
                "mean": (0.0, 0.0, 0.0),  # subtracted a channel, after scaling to [0, 1]; (): the network's own
                "std": (1.0, 1.0, 1.0),  # divides a channel; (): the network's own
            },
            "model": {
                "name": "cnn",
                "widths": (32, 64, 128),  # channels of each block
                "convs_per_block": 2,
                "hidden": (128,),  # units of each dense layer before the head
                "batch_norm": False,
                "bn_momentum": 0.99,
                "bn_epsilon": 1e-3,
                "dropout": (),  # after each block and each hidden layer: (a, b, c, d)
                "winograd": True,  # on a CPU: faster 3x3 convolutions, which round ten times as much
                "trainable": "all",  # or a pattern for modules, such as "head"; the others stay as they are
            },
            "optimizer": {
                "name": "sgd",  # or "adam", or "muon": for convolutions; SGD for the rest
                "learning_rate": 0.01,
                "momentum": 0.9,  # Adam's first coefficient
                "nesterov": False,
                "b2": 0.999,  # Adam's second coefficient
                "epsilon": 1e-7,  # Adam's; Keras' default
                "weight_decay": 0.0,  # decoupled
                "schedule": "constant",  # or "linear" or "cosine", to zero
                "warmup_epochs": 0.0,
                "groups": (),  # ((pattern, factor), ...): the learning rate of these modules times the factor
                "muon": {  # see cnn_jax/training/muon.py
                    "momentum": 0.95,  # in the place of optimizer.momentum, for convolutions
                    "steps": 5,  # of the iteration that makes updates orthogonal
                    "keep_norms": False,  # hold kernels at one size; for networks with BatchNorm
                },
            },
            "average": {  # of the weights; see cnn_jax/training/ema.py
                "decay": 0.0,  # what an update keeps of the average; 0: none
                "every": 1,  # steps between updates
                "ramp": 0.0,  # the decay is multiplied by this power of the share of the run that is done
                "lookahead": False,  # go on training from the average
            },
            "finetune": {  # a second phase, after `epochs`; its schedule starts anew
                "epochs": 0,  # 0: none
                "trainable": "all",  # in the place of model.trainable
                "learning_rate": 1e-4,  # in the place of optimizer.learning_rate
            },
            "features": {  # of a frozen backbone, where nothing is augmented
                "cache": True,  # computed once and kept on disk, not in every epoch
                "dir": "",  # where; empty for the workdir. Runs with the same backbone and images can share one
            },
            "augment": {
                "flip": False,  # mirror half of the images
                "alternate_flip": False,  # instead: mirror each image in every second epoch
                "shift": 0.0,  # largest move, as a fraction of the side; rounded down to whole pixels
                "rotate": 0.0,  # largest angle, in degrees
                "zoom": 0.0,  # largest change of scale
                "crop_padding": 0,  # pixels of padding before a random crop
                "crop_mode": "constant",  # or "reflect"
                "cutout": 0,  # side of a covered square, in pixels
            },
        }
    )
    return config.lock()
