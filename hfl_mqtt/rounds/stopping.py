"""When a run has done enough before its last round: the target is reached, the bytes are spent, nothing improves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Rules, any of which ends a run early. None switches one off.

    Args:
        metric: which score `target` and `patience` look at, by the name under which it is published.
        higher_is_better: its direction.
        target: the run ends when a version scores at least (or at most) this.
        patience: the run ends when this many versions in a row were no better than the best before them.
        budget_bytes: the run ends when this many bytes have been moved on all links of the tree.
    """

    metric: str = ""
    higher_is_better: bool = True
    target: float | None = None
    patience: int | None = None
    budget_bytes: int | None = None

    def reason(
        self, history: Sequence[Mapping[str, float]], moved_bytes: int, given: Sequence[float] = ()
    ) -> str | None:
        """Return why to stop now, in words, or None.

        Args:
            history: the scores of each version so far; the newest may have none yet.
            moved_bytes: on all links, since the run began.
            given: what each child gave of the newest score; nothing where the cloud itself scored. No child that is
                one of many reaches a target alone: half of them do, or their mean tells nothing.
        """
        if self.budget_bytes is not None and moved_bytes >= self.budget_bytes:
            return f"{moved_bytes / 1e6:.3g} MB of a budget of {self.budget_bytes / 1e6:.3g} MB are spent"
        # Version 0 was trained by nobody: it may be what others are no better than, but reaches no target.
        scores = [(version, scores[self.metric]) for version, scores in enumerate(history) if self.metric in scores]
        if not scores:
            return None
        sign = 1 if self.higher_is_better else -1
        version, score = scores[-1]
        if self.target is not None and version and self._is_reached(self.target, (score, *given), sign):
            return f"{self.metric} {score:.4g} of version {version} reaches the target {self.target:g}"
        if self.patience is not None:
            best, best_score = max(scores, key=lambda pair: (sign * pair[1], -pair[0]))
            if version - best >= self.patience:
                return f"{self.metric} has not improved for {version - best} versions on the {best_score:.4g} of {best}"
        return None

    @staticmethod
    def _is_reached(target: float, scores: Sequence[float], sign: int) -> bool:
        """Whether the mean, which comes first, reaches it, and at least half of what it is of."""
        mean, *given = (sign * score >= sign * target for score in scores)
        return mean and 2 * sum(given) >= len(given)
