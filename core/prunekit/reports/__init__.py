"""What is made of results for readers: runs side by side. Needs no torch."""
