"""Those who look on: probes, recorders, listeners. None of them can change a result."""
