"""Whether what a results file claims can be computed again from the weights and data that it names."""
