"""A plugin that writes to standard output in every way, whenever it can."""

import os
import subprocess
import sys

import prunekit as pk

print("printed")
sys.__stdout__.write("written past a redirection\n")
os.write(1, b"written past Python\n")
subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)


class Noisy(pk.Criterion):
    """Magnitude, with much ado."""

    name = "noisy"

    @property
    def requires(self):
        print("asked for its statistics")
        return frozenset()

    def saliency(self, weights, statistics):
        print("asked for saliencies")
        return {name: w.abs() for name, w in weights.items()}


@pk.hookimpl
def prunekit_register_criteria():
    print("registered")
    return [Noisy]
