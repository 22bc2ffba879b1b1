"""Linear algebra that knows nothing of networks: inverses, conjugate gradients, constrained minima, quasi-Newton steps."""
