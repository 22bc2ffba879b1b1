"""Everything computed from the loss at fixed weights; public for those who write statistics.

Every statistic of a layer contracts two things: what entered the layer (activations) and what came back to its output
(gradients of some output vectors). ``capture`` runs the network once and collects the first,
:meth:`ForwardPass.backward` sends vectors back for the second, and ``contraction`` holds the products that combine
them. Names are resolved on first use, so that a statistic can be listed without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
