"""Classes that have not been learned: their validation Dice is still 0."""

from ubend.core.i18n import _
from ubend.portable.printable import enumerate_names
from ubend.training.training import Training

_SHOWN_AS_ZERO = 0.0005  # threshold: epoch lines show three decimals
_HIGHER_RATE = 3  # suggested factor of the learning rate


def describe_unlearned(training: Training) -> str | None:
    """One line with the unlearned classes and remedies, after a third of the epochs and after the last.

    Returns:
        None: no report after this epoch, or all classes are learned.
    """
    settings, progress = training.settings, training.state.progress
    epoch = len(progress.history)
    is_last = epoch == settings.epochs or progress.stop_reason is not None
    if not (is_last or epoch == -(-settings.epochs // 3)) or not (names := find_unlearned(training)):
        return None
    return _(
        "note: {names}: validation Dice is still 0.000 after {epoch} of {epochs} epochs; try more steps (more "
        "--epochs, or a smaller --batch), a higher learning rate (--set train.learning_rate={rate:g}), or, if images "
        "are resized, crops at native scale (--patches)"
    ).format(
        names=enumerate_names(names), epoch=epoch, epochs=settings.epochs, rate=_HIGHER_RATE * settings.learning_rate
    )


def find_unlearned(training: Training) -> list[str]:
    """The classes whose validation Dice was 0.000 in the second half of the epochs so far, in class order.

    During batch norm warm-up the Dice with batch statistics is used. Classes without validation pixels are excluded:
    their Dice is 0 wherever they are predicted.
    """
    history = training.state.progress.history
    later = [row.get("batch_statistics_dice", row["val_dice"]) for row in history[len(history) // 2 :]]
    return [
        name
        for index, name in enumerate(training.class_names)
        if all(dice[name] is not None and dice[name] < _SHOWN_AS_ZERO for dice in later)
        and any((training.validation.mask(item) == index).any() for item in range(len(training.validation)))
    ]
