"""The ``curvature`` option: which diagonal stands for the second derivative."""

from __future__ import annotations

from typing import Literal

from prunekit import Options, Statistic


class CurvatureOptions(Options):
    """Options of the criteria that use a curvature diagonal.

    Attributes:
        curvature: ``ggn``, the diagonal of the generalised Gauss-Newton matrix, exact over classes.
    """

    curvature: Literal["ggn"] = "ggn"

    @property
    def statistic(self) -> Statistic:
        """The statistic that supplies the diagonal."""
        return Statistic(f"{self.curvature}_diagonal")
