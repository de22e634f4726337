"""What share of the preference labels is taken to be the wrong way round."""


def check_label_smoothing(label_smoothing: float, *, loss: str) -> None:
    """Refuse a share of wrong labels that is none.

    Args:
        label_smoothing: ε, the probability that a pair is labelled the wrong way round.
        loss: name of the loss, for the message.

    Raises:
        ValueError: where ε is not in ``[0, 0.5)``.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"{loss}: label_smoothing is the share of pairs labelled the wrong way round and lies in "
            f"[0, 0.5), got {label_smoothing}; from one half on the labels say nothing, or the opposite"
        )
