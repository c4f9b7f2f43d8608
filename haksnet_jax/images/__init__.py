"""What is an image, and its pixels: one reader for all."""
