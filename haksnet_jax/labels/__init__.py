"""Label formats, classes, and problems in labels."""
