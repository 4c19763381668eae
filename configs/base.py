"""Every key of training: its default, the values it may have, and its meaning. The stages start from here.

A stage imports the stage before it and changes a few lines. The command line changes any key:
`--config.optimizer.learning_rate=0.1`; `--config.model.name=speednet` takes another network with its defaults.
The defaults are those of the reference, a Keras study, where it gives them.

The keys of a network are declared on the fields of its class, as in cnn_jax/models/cnn.py.
`python -m cnn_jax.config [STAGE]` lists all keys.
"""

from ml_collections import ConfigDict

from cnn_jax.keys import (
    BOOLEAN,
    PATTERN,
    SEED,
    SHARE,
    TEXT,
    Key,
    Rule,
    defaults,
    number,
    one_of,
    or_empty,
    pair,
    tuple_of,
    whole,
)

VALIDATION = Rule(
    lambda v: type(v) in (int, float) and (0 <= v < 1 or (v > 1 and v == int(v))),
    "a fraction from 0 to below 1, or a count of at least 2",
)

KEYS = {
    "seed": Key(0, SEED, "decides initial weights, order, augmentation and dropout, but not the splits"),
    "seeds": Key(1, whole(1), "how many seeds to train at once: seed, seed + 1, ..., each as if it ran alone"),
    "epochs": Key(50, whole(1), "passes over the training images"),
    "batch_size": Key(32, whole(1), "images per training step"),
    "eval_batch_size": Key(250, whole(1), "images per evaluation step"),
    "steps_per_call": Key(
        50, whole(1), "steps between two checks of signals, progress and metrics", changes_numbers=False
    ),
    "accumulate": Key(1, whole(1), "parts of a batch that are computed one after the other, to need less memory"),
    "mesh": {  # over which devices a run is spread: see docs/scaling.md
        "data": Key(0, whole(0), "devices that share each batch; 0: one CPU, otherwise all", changes_numbers=False),
        "seed": Key(
            0, whole(0), "devices that share the seeds; 0: as many as fit, on a CPU one", changes_numbers=False
        ),
        "images": Key(
            "auto",
            one_of("auto", "replicate", "shard"),
            "whether each device holds all images or a part; auto: all, if they take at most half of its memory",
            changes_numbers=False,
        ),
        "steps": Key(
            "auto",
            one_of("auto", "scan", "loop"),
            "whether the steps between two checks are one program or a call each; auto: on a CPU a call each",
            changes_numbers=False,
        ),
    },
    "dtype": Key(
        "float32", one_of("float32", "bfloat16"), "type that layers compute in; parameters are float32 in any case"
    ),
    "label_smoothing": Key(0.0, SHARE, "share of each target that is spread evenly over all classes"),
    "deterministic": Key(
        False, BOOLEAN, "on a GPU, use only kernels that give the same bits each time: a repeated run is then identical"
    ),
    "warm_up": Key(
        False,
        BOOLEAN,
        "before training is timed, run its program once on a state that is thrown away; reported apart",
        changes_numbers=False,
    ),
    "on_nan": Key(
        "stop",
        one_of("stop", "skip", "continue"),
        "when the loss is not finite: stop and name the layer, skip the update (also where a gradient is not finite) "
        "and count it, or continue",
        changes_numbers=False,  # it does, but only where they are lost otherwise
    ),
    "init_from": Key(
        "", TEXT, "workdir of a run whose best checkpoint this run starts from; layers that do not fit start fresh"
    ),
    "diagnostics": Key(
        False, BOOLEAN, "record gradients, weights, updates, activations and dead ReLUs per layer, and the sharpness"
    ),
    "sharpness_every": Key(
        5000,
        whole(0),
        "with diagnostics, steps between measurements of the largest eigenvalue of the loss's Hessian; 0: none",
    ),
    "profile": Key(
        False, BOOLEAN, "trace some steps into WORKDIR/profile, for TensorBoard or Perfetto", changes_numbers=False
    ),
    "tensorboard": Key(
        "tensorboardX",
        one_of("tensorboardX", "clu", "off"),
        "writer of TensorBoard events; clu needs TensorFlow",
        changes_numbers=False,
    ),
    "loggers": Key(
        (),
        tuple_of(one_of("csv", "wandb", "mlflow")),
        "where metrics go besides TensorBoard, such as csv,wandb",
        changes_numbers=False,
    ),
    "eval": {
        "epochs": Key(1, whole(1), "epochs between validations; the last epoch always has one", changes_numbers=False),
        "mirror": Key(False, BOOLEAN, "average over mirror images too, here and in all later inference"),
        "shift": Key(0, whole(0), "average over images shifted by this many pixels too, here and in later inference"),
    },
    "early_stopping": {
        "patience": Key(0, whole(0), "end the run after so many epochs without a better validation accuracy; 0: never"),
        "min_delta": Key(0.0, SHARE, "by how much a validation accuracy must exceed the best one to be better"),
    },
    "checkpoint": {
        "epochs": Key(1, whole(1), "epochs between checkpoints; the last epoch always has one", changes_numbers=False),
        "minutes": Key(5.0, number(0), "minutes after which to save in any case; 0: never", changes_numbers=False),
    },
    "data": {
        "name": Key("cifar10", TEXT, "cifar10, another image-classification data set of tfds, digits, or folder"),
        "dir": Key(
            "",
            TEXT,
            "folder of the data set; for tfds, empty means $TFDS_DATA_DIR or ~/tensorflow_datasets",
            changes_numbers=False,
        ),
        "train_examples": Key(0, whole(0), "size of a class-balanced training subset; 0: all images"),
        "validation": Key(0.1, VALIDATION, "validation images cut from the training split; 0: none"),
        "class_weights": Key(
            "none",
            one_of("none", "balanced"),
            "weights of the training loss; balanced: images / (classes * images of the class), as in scikit-learn",
        ),
        "split_seed": Key(0, SEED, "decides which images are held out for validation and which subset is used"),
        "image_size": Key(32, whole(0), "side in pixels to which images are resized on the device; 0: as stored"),
        "stream": Key(
            "auto",
            one_of("auto", "always", "never"),
            "decode images while the network trains, instead of holding all in memory; auto: if they need more than "
            "data.memory",
            changes_numbers=False,
        ),
        "memory": Key(
            0.0,
            number(0),
            "gigabytes of decoded images up to which all are held in memory; 0: a quarter of the machine's",
            changes_numbers=False,
        ),
        "on_bad_image": Key(
            "stop",
            one_of("stop", "skip"),
            "when an image cannot be read: stop and name it, or train on the next one instead and count it",
            changes_numbers=False,  # it does, but only where there is no run otherwise
        ),
        "mean": Key(
            (0.0, 0.0, 0.0),
            or_empty(tuple_of(number(), 3), "the network's own"),
            "subtracted per channel, after scaling to [0, 1]",
        ),
        "std": Key(
            (1.0, 1.0, 1.0),
            or_empty(tuple_of(number(1e-6), 3), "the network's own"),
            "divisor per channel, after the mean is subtracted",
        ),
    },
    "model": {
        "name": Key("cnn", TEXT, "the network, which adds keys of its own to this section"),
        "trainable": Key("all", PATTERN, "which modules are trained, such as 'head'; all others are frozen"),
    },
    "optimizer": {
        "name": Key(
            "sgd",
            one_of("sgd", "adam", "adamw", "muon"),
            "adamw is adam, whose weight decay is decoupled; muon is Muon for convolutions, SGD for the rest",
        ),
        "learning_rate": Key(0.01, number(0), "highest learning rate of the schedule"),
        "momentum": Key(0.9, SHARE, "momentum; of Adam, the first coefficient"),
        "nesterov": Key(False, BOOLEAN, "Nesterov momentum"),
        "b2": Key(0.999, SHARE, "second coefficient of Adam"),
        "epsilon": Key(1e-7, number(0), "epsilon of Adam; the default is that of Keras"),
        "weight_decay": Key(0.0, number(0), "decoupled weight decay"),
        "clip_norm": Key(0.0, number(0), "global norm to which larger gradients are scaled down; 0: no clipping"),
        "schedule": Key(
            "constant",
            one_of("constant", "linear", "cosine", "onecycle", "restarts"),
            "linear and cosine decay to zero; onecycle rises first; restarts repeats cosine",
        ),
        "restarts": {
            "epochs": Key(10.0, number(1e-6), "epochs of the first decay of schedule restarts"),
            "factor": Key(2.0, number(1), "length of each further decay, as a multiple of the one before"),
        },
        "warmup_epochs": Key(0.0, number(0), "epochs in which the learning rate rises linearly from zero"),
        "groups": Key(
            (),
            tuple_of(pair(PATTERN, number(0), "a pair (pattern, factor of the learning rate)")),
            "factors of the learning rate for some modules",
        ),
        "muon": {  # see cnn_jax/training/muon.py
            "momentum": Key(0.95, SHARE, "momentum of convolutions, in place of optimizer.momentum"),
            "steps": Key(5, whole(1), "iterations that make an update orthogonal"),
            "batched": Key(False, BOOLEAN, "compute the updates of all kernels as one batch, which is for GPUs"),
            "keep_norms": Key(False, BOOLEAN, "keep the norm of each kernel constant; for networks with BatchNorm"),
        },
    },
    "average": {  # exponential moving average of the weights: see cnn_jax/training/ema.py
        "decay": Key(0.0, SHARE, "share of the average that an update keeps; 0: no average"),
        "every": Key(1, whole(1), "steps between updates of the average"),
        "ramp": Key(0.0, number(0), "multiply the decay by this power of the completed share of the run"),
        "lookahead": Key(False, BOOLEAN, "continue training from the average"),
    },
    "finetune": {  # a second phase, which follows after `epochs` and starts its schedule again
        "epochs": Key(0, whole(0), "epochs of the second phase; 0: no second phase"),
        "trainable": Key("all", PATTERN, "model.trainable in the second phase"),
        "learning_rate": Key(1e-4, number(0), "optimizer.learning_rate in the second phase"),
    },
    "features": {  # of a frozen backbone, where images are not augmented
        "cache": Key(True, BOOLEAN, "compute features once and keep them on disk"),
        "dir": Key(
            "",
            TEXT,
            "folder of the features, which runs with the same backbone and images can share; empty for the workdir",
            changes_numbers=False,
        ),
    },
    "augment": {
        "flip": Key(False, BOOLEAN, "mirror half of the images"),
        "alternate_flip": Key(False, BOOLEAN, "mirror each image in every second epoch instead"),
        "shift": Key(0.0, SHARE, "largest shift, as a fraction of the side, rounded down to whole pixels"),
        "rotate": Key(0.0, number(0), "largest rotation, in degrees"),
        "zoom": Key(0.0, SHARE, "largest relative change of scale"),
        "crop_padding": Key(0, whole(0), "pixels of padding before a random crop"),
        "crop_mode": Key("constant", one_of("constant", "reflect"), "how a random crop is padded"),
        "cutout": Key(0, whole(0), "side in pixels of a square that is covered; 0: none"),
        "sides": Key(
            (),
            tuple_of(whole(1)),
            "sides in pixels to which augmented images are resized in equal parts of a phase, such as (24, 28, 32)",
        ),
        "mixup": Key(0.0, number(0), "blend pairs of images and labels: parameter of the Beta distribution; 0: off"),
        "cutmix": Key(0.0, number(0), "paste a patch of another image, and mix the labels; like mixup"),
    },
}


def keys(network: str) -> dict:
    """Returns `KEYS` with the keys of a network in the section "model"."""
    from cnn_jax.models.keys import network_keys  # here, because JAX takes a second to import

    model = {"name": KEYS["model"]["name"]._replace(default=network), **network_keys(network)}
    return KEYS | {"model": model | {"trainable": KEYS["model"]["trainable"]}}


def get_config(network: str = KEYS["model"]["name"].default) -> ConfigDict:
    """Returns the default of every key."""
    return ConfigDict(defaults(keys(network))).lock()
