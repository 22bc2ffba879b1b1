"""What probes and schedulers make of the loss along a step; no plugin: it registers nothing."""
