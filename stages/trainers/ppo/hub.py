"""When a model of PPO is uploaded."""

import math


class BestScore:
    """Whether the mean score is the best so far, looked at every so many steps.

    Args:
        compare_steps: steps between two looks.
    """

    def __init__(self, compare_steps: int) -> None:
        self.compare_steps = compare_steps
        self.num_steps = 0
        self.highest = -math.inf

    def is_best(self, mean_score: float) -> bool:
        """Take in the mean score of a step, and say whether it is looked at and beats all that were."""
        is_looked_at = self.num_steps % self.compare_steps == 0
        self.num_steps += 1
        if not is_looked_at or mean_score <= self.highest:
            return False
        self.highest = mean_score
        return True
