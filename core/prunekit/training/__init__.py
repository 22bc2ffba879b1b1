"""The training loop, for the dense network and for fine-tuning."""
