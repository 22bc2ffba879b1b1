"""Curvature in blocks: what the statistics of the OBS family are made of.

A block is a set of weights whose curvature is taken whole, while that between blocks is taken to be zero: all weights
(``inverse_full``), those that feed one unit (``inverse_rows``), any run of neighbours (``inverse_block``).
``blocks`` holds them and their damped inverses, ``block_families`` says where they come from, ``kronecker`` and
``layer_gram`` have blocks that know how they belong together. ``jacobian_factors`` and ``inverse_products`` know a matrix
over all weights by its products, ``rows`` its factor A. The package is no plugin: it registers nothing.
"""
