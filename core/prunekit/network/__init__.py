"""A network as it is given: calling it, measuring its loss, reading its weights, leaving it as it was found."""
