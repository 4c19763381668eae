"""Names of the files and folders in a workdir."""

CONFIG_FILE = "config.json"  # the configuration of the run
METRICS_FILE = "metrics.jsonl"  # one record per line: step, epoch, split and values
CSV_FILE = "metrics.csv"  # the same as a table, with config.loggers=csv
LOGGERS_FILE = "loggers.json"  # the identifiers of the run at Weights & Biases and MLflow
TIMES_FILE = "times.json"  # seconds per part of the run
PROVENANCE_FILE = "provenance.json"  # source, versions and hardware of the steps
EVALUATION_FILE = "evaluation.json"  # the result of the last `cnn_jax.evaluate` on the test split
PREDICTIONS_FILE = "predictions.npz"  # on the test and validation images, for `cnn_jax.report`
RANGE_TEST_FILE = "learning_rate.json"  # the learning-rate range test, and beside it a figure, learning_rate.png
LOCK_FILE = "lock"  # names the process that trains here

CHECKPOINT_FOLDER = "checkpoints"  # one Orbax checkpoint per step
FEATURES_FOLDER = "features"  # cached features of a frozen backbone
PROFILE_FOLDER = "profile"  # traces of `config.profile`
TENSORBOARD_FOLDER = "tensorboard"  # event files
