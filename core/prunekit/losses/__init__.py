"""The task loss: what is summed over examples, and by what it is divided."""
