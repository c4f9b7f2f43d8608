"""Boxes, anchors, matching, overlap and suppression: pure functions of arrays."""
