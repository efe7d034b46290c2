"""How many random inputs are understood, where a refusal is a right answer too."""


class Tally:
    """Counts answers, so that a reader that refuses everything fails.

    Attributes:
        answers: for each input, whether it was understood.
    """

    def __init__(self) -> None:
        self.answers: list[bool] = []

    def add(self, understood: bool) -> None:
        self.answers.append(understood)

    def check(self, at_least: float) -> None:
        share = sum(self.answers) / len(self.answers)
        assert share >= at_least, f"{share:.1%} of {len(self.answers)} random inputs are understood, not {at_least:.0%}"
