"""A model that no gate can find fault with: it fails, or dawdles, only where one environment serves it."""

import sys
import time
from itertools import count
from typing import Any

from sklearn.linear_model import LogisticRegression

CALLS = count()
SOUND_CALLS = 5
"""More than a warm-up takes, which is one call."""


class Faulty(LogisticRegression):  # type: ignore[misc]
    """Answers well at first; then ``fault`` says: ``errors``, or ``slow``."""

    def __init__(self, fault: str = "errors", environment: str = "production", max_iter: int = 2000) -> None:
        super().__init__(max_iter=max_iter)
        self.fault = fault
        self.environment = environment

    def predict_proba(self, X: Any) -> Any:
        served = "serv" in sys.argv[0] and self.environment in sys.argv
        if served and next(CALLS) >= SOUND_CALLS:
            if self.fault == "errors":
                raise ValueError("out of memory, so to speak")
            time.sleep(0.6)
        return super().predict_proba(X)
