"""Thresholds that commands, drawings and reports share. It imports nothing, so that a help text can name them."""

SHOWN_SCORE = 0.3  # lowest score of a detection that is drawn, or counted among the errors
MERGE_IOU = 0.1  # overlap of two detections above which merging drops the one of the lower score
