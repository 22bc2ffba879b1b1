"""Linear algebra that knows nothing of networks: inverses of many matrices, conjugate gradients, constrained minima,
quasi-Newton steps."""
