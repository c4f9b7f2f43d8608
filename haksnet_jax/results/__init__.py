"""Detections out: tiles and merging, text formats, average precision, drawings."""
