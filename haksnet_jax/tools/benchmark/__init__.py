"""Speed of every part of the models beside the limit of the hardware."""
