"""Published data sets: where each comes from, how its release lies, and how its annotations are read."""
