"""Images and labels in: sources of examples, augmentation, batches on the devices."""
