"""A plugin with a name that is taken."""

import prunekit as pk


class AnotherQM(pk.Criterion):
    """θ²."""

    name = "qm"

    def saliency(self, weights, statistics):
        return {k: w.square() for k, w in weights.items()}


@pk.hookimpl
def prunekit_register_criteria():
    return [AnotherQM]
