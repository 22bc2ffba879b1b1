"""Which weights go where costs depend on each other, and what is left takes on.

``elimination`` and ``greedy`` remove weights one by one, ``exchange`` and ``pairs`` swap them, ``joint`` bounds what any
choice can reach, ``dual`` chooses by that bound and ``branching`` finds the best choice of few weights, ``columns`` sweeps
through a layer, ``pattern`` keeps N of every M, ``reconstruction`` fits what is left. The package is no plugin: it
registers nothing.
"""
