"""Whether the shadow tells the truth: its outcomes against what live trades on the same signals came to."""

from dataclasses import dataclass

import numpy as np

from strategy_core.domain.arrays import FloatArray

MINIMUM_SLOTS = 30  # of agreement: fewer say nothing either way
_SAME = 1e-12  # R²: below it results differ by rounding alone


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well the shadow's R agrees with live R, slot by slot, of one version.

    Attributes:
        concordance: Lin's coefficient: 1 when they are equal, 0 when unrelated; a shift or another scale lowers it.
        n: slots of which both are known.
        live_r, shadow_r: means over those slots.
    """

    concordance: float
    n: int
    live_r: float
    shadow_r: float

    def doubt(self, limit: float = 0.8, minimum: int = MINIMUM_SLOTS) -> str:
        """Return why comparisons of shadow outcomes cannot be trusted; "" when nothing says so."""
        if self.n < minimum or self.concordance >= limit:
            return ""
        return (
            f"the shadow's outcomes do not tell what trades are worth live: concordance {self.concordance:.2f} on "
            f"{self.n} slots, limit {limit:g} (mean {self.live_r:+.3f} R live, {self.shadow_r:+.3f} R in shadow)"
        )


def fidelity(live: FloatArray, shadow: FloatArray) -> Fidelity | None:
    """Return the agreement of paired R-multiples, both of shape (slots,); None without any.

    ρ = 2·s_xy / (s_x² + s_y² + (x̄ − ȳ)²), moments over n; 1 where neither varies and both are equal.

    Source: Lin (1989), "A concordance correlation coefficient to evaluate reproducibility".
    """
    if len(live) == 0:
        return None
    x, y = live - live.mean(), shadow - shadow.mean()
    apart = float(np.mean(x**2) + np.mean(y**2) + (live.mean() - shadow.mean()) ** 2)
    concordance = 2 * float(np.mean(x * y)) / apart if apart > _SAME else 1.0
    return Fidelity(concordance, len(live), float(live.mean()), float(shadow.mean()))
