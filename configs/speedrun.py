"""speedrun: high accuracy within seconds on one GPU.

python -m cnn_jax.main --config=speedrun --workdir=/tmp/speedrun

It runs on a CPU, but is tuned for GPUs: 2,000 images per step need 12 GB of memory. On 2 CPU cores, expect these test
accuracies of a narrower network in a minute or two (n = 1 seed), with --config.batch_size=250 --config.dtype=float32
--config.model.widths='(16, 32, 32)': .98 with --config.data.name=digits; .66 on CIFAR-10 re-encoded as JPEG, with
--config.data.train_examples=5000 --config.data.validation=3000.

Goal: .94 on CIFAR-10, which the fastest known code reaches in 1.83 s on an A100 (fulcrumresearch/cifar-10-speedrun;
1.98 s: hiverge/cifar10-speedrun), and the code it is based on in 2.6 s (airbench94_muon). Time and accuracy on a GPU:
to be measured; docs/gpu.md has the command, and options that may help. Unlike those codes, this stage holds out a tenth
of the training images for validation; --config.data.validation=0 trains on all of them.

The recipe is that of airbench (Jordan 2024, arXiv:2404.00498); comments give the reasons.
"""

from cnn_jax.configs import base


def get_config():
    config = base.get_config("speednet")
    # Chunks of steps cross epochs, because nothing is scored or saved before the end.
    config.eval.epochs = config.checkpoint.epochs = 1_000_000
    config.checkpoint.minutes = 0.0
    # The clock starts when the program and the libraries are loaded, as that of airbench does.
    config.warm_up = True

    # Half the memory traffic, and tensor cores; 8 bits of mantissa are enough for activations (airbench uses float16).
    config.dtype = "bfloat16"
    # A few large steps use a GPU fully.
    config.batch_size = 2000
    config.eval_batch_size = 1000
    config.epochs = 8
    # Mean and standard deviation of CIFAR-10's training images, per channel.
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)

    # The network has its defaults, which cnn_jax/models/speednet.py explains. Only the whitening kernel is frozen.
    config.model.trainable = "bias|block.*|head"

    # Updates of convolutions are orthogonal matrices: more progress per step, at little cost where batches are large
    # (Muon, Jordan et al. 2024; airbench94_muon).
    config.optimizer.update({"name": "muon", "learning_rate": 0.24, "momentum": 0.85, "nesterov": True})
    # Three iterations are enough, and a low momentum is better for two hundred steps; kernels of constant norm
    # (airbench).
    config.optimizer.muon.update({"momentum": 0.6, "steps": 3, "keep_norms": True})
    # Learning rates of SGD, relative to that of Muon: SGD multiplies gradients, Muon a normalised direction.
    # The biases of BatchNorm learn many times faster than kernels would (hlb-CIFAR10; airbench). These are the values
    # of airbench for the sum over a batch of 2,000 and its scaling of the logits: 0.053 * 2000 / 0.24, and 0.67 * 2000
    # / 256^2 * 16^2 / 0.24.
    config.optimizer.groups = (("bias", 440.0), ("head", 22.0))
    # A linear decay to zero averages over the noise of the last steps (Defazio et al. 2023, arXiv:2310.07831). The
    # steps of Muon have a bounded size from the first one on, so it needs no warm-up (airbench94_muon).
    config.optimizer.schedule = "linear"
    config.optimizer.weight_decay = 0.005  # of the head, decoupled; the norms of kernels are constant anyway
    # Targets that give every class some probability prevent overconfidence (Szegedy et al. 2016; airbench).
    config.label_smoothing = 0.2

    # Each image is mirrored in every second epoch, so that two epochs in a row never repeat a view (airbench).
    config.augment.alternate_flip = True
    # Shifts of up to two pixels, padded by reflection: enough for so few epochs (airbench).
    config.augment.update({"crop_padding": 2, "crop_mode": "reflect"})

    # Every fifth step, the weights are pulled towards their average, more strongly towards the end (Zhang et al. 2019,
    # arXiv:1907.08610; airbench94).
    config.average.update({"decay": 0.95**5, "every": 5, "ramp": 3.0, "lookahead": True})

    # Logits are averaged over six views of each image (the multi-crop evaluation of airbench). This costs six forward
    # passes per scored image; a forward pass is a third of a training step.
    config.eval.update({"mirror": True, "shift": 1})
    return config
