"""The configurations of the phases of a run."""

from ml_collections import ConfigDict


def phases(config: ConfigDict) -> list[ConfigDict]:
    """Returns the configuration of each phase of a run: the run itself and, where there is one, its fine-tuning.

    The second is the first with the values of `config.finetune` for the three keys that it replaces.
    """
    if not config.finetune.epochs:
        return [config]
    second = config.copy_and_resolve_references()
    second.epochs = config.finetune.epochs
    second.model.trainable = config.finetune.trainable
    second.optimizer.learning_rate = config.finetune.learning_rate
    return [config, second]
