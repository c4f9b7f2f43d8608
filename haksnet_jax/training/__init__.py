"""The training loop and its rooms: state, step, resume, stop, log, optimizer, checkpoint, executables."""
