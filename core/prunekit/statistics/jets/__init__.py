"""Polynomials that go through a network as tensors do; see :mod:`prunekit.statistics.jets.jet`."""

from prunekit.statistics.jets import algebra, functions, layers  # they bring the rules
from prunekit.statistics.jets.jet import Jet, NoJetError, coefficients

__all__ = ["Jet", "NoJetError", "algebra", "coefficients", "functions", "layers"]
