"""What the training loop asks of a task, a file each."""
