"""Optimal Brain Surgery on curvature that falls into blocks: what its statistics and criteria share.

A block is a set of weights whose curvature is taken whole, while that between blocks is taken to be zero: all
weights (``inverse_full``), those that feed one unit (``inverse_rows``), any run of neighbours (``inverse_block``).
:mod:`.blocks` holds them, :mod:`.inversion` inverts them, :mod:`.elimination` removes weights one by one, and
:mod:`.solve` adjusts what is left. :mod:`.kronecker` has blocks that know how they belong together, so that
:mod:`.conjugate` can adjust a whole layer; :mod:`.products` an inverse of all weights that is never formed. This
package is no plugin: it registers nothing.
"""
