"""speedrun: as accurate as possible in seconds on one GPU, as one compiled program.

python -m cnn_jax.main --config=configs/speedrun.py --workdir=/tmp/speedrun

On a CPU it runs but is not at home: 2,000 images a step need 12 GB of memory. Expect of a narrow form, with
--config.batch_size=250 --config.dtype=float32 --config.model.widths='(16, 32, 32)', in a minute or two on 2 CPU cores
(1 seed): .98 with --config.data.name=digits; .66 with --config.data.train_examples=5000 --config.data.validation=3000,
test accuracy on CIFAR-10 re-encoded as JPEG.

Goal: .94 on CIFAR-10, which the fastest known code reaches in 2.0 s on an A100 (hiverge/cifar10-speedrun) and the one
that it grew from in 2.6 s (airbench94_muon). Time and accuracy on a GPU: not measured yet. A tenth of the training
images is held out for validation, which those two do not do; --config.data.validation=0 trains on all of them.

The recipe is airbench's (Jordan 2024, arXiv:2404.00498) in our own words: its reasons stand at each line.
"""

from cnn_jax.configs import base


def get_config():
    config = base.get_config("speednet")
    # Nothing to do in Python between the first step and the last: on a GPU the run is one program. A signal is looked
    # at when it has ended.
    config.steps_per_call = 1_000_000
    config.eval.epochs = config.checkpoint.epochs = 1_000_000  # but at the end
    config.checkpoint.minutes = 0.0

    # Half as many bytes and tensor cores; 8 bits of mantissa are enough for activations (airbench has float16).
    config.dtype = "bfloat16"
    # Few large steps keep a GPU full.
    config.batch_size = 2000
    config.eval_batch_size = 1000
    config.epochs = 8
    # Mean and standard deviation of CIFAR-10's training images, a channel.
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)

    # With its defaults, which cnn_jax/models/speednet.py explains. All but the whitening kernel is trained.
    config.model.trainable = "bias|block.*|head"

    # Updates of convolutions as orthogonal matrices: more learned a step, at hardly any cost where steps are large
    # (Muon, Jordan et al. 2024; airbench94_muon).
    config.optimizer.update({"name": "muon", "learning_rate": 0.24, "momentum": 0.85, "nesterov": True})
    # Three iterations are enough, and a short memory is better for two hundred steps; kernels of one size (airbench).
    config.optimizer.muon.update({"momentum": 0.6, "steps": 3, "keep_norms": True})
    # SGD's learning rates: they belong to gradients, which have a size, where Muon's belongs to a direction, which has
    # none. BatchNorms' biases learn many times faster than kernels would (hlb-CIFAR10; airbench). airbench's own, for
    # the sum over a batch of 2,000 and its scaling of the logits: 0.053 * 2000 / 0.24, and 0.67 * 2000 / 256^2 * 16^2 /
    # 0.24.
    config.optimizer.groups = (("bias", 440.0), ("head", 22.0))
    # Straight down to zero: an average over the noise of the last steps (Defazio et al. 2023, arXiv:2310.07831). Muon's
    # steps have a bounded size from the first one on, so it needs no warm-up (airbench94_muon).
    config.optimizer.schedule = "linear"
    config.optimizer.weight_decay = 0.005  # of the head, decoupled; norms of kernels are held anyway
    # A little of every class in each target: less sure of itself, more to learn from (Szegedy et al. 2016; airbench).
    config.label_smoothing = 0.2

    # Each image is seen in both directions in turn: nothing twice in the same epochs (airbench).
    config.augment.alternate_flip = True
    # Moved by up to two pixels, filled up by reflection: enough for so few epochs (airbench).
    config.augment.update({"crop_padding": 2, "crop_mode": "reflect"})

    # The weights of every fifth step are drawn to their mean, more and more towards the end (Zhang et al. 2019,
    # arXiv:1907.08610; airbench94).
    config.average.update({"decay": 0.95**5, "every": 5, "ramp": 3.0, "lookahead": True})

    # Six views of every image, one answer (airbench's multi-crop evaluation). It costs six passes over the images that
    # are scored; a pass is a third of a training step.
    config.eval.update({"mirror": True, "shift": 1})
    return config
