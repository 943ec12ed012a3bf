"""The limits of the contest."""

CAP_BYTES = 16_000_000
TRAIN_SECONDS = 600.0
EVAL_SECONDS = 600.0
