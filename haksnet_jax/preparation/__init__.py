"""What is done ahead of training: splitting, validation, packing."""
