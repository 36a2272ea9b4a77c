"""Training: from a checkpoint and JSON lines to a checkpoint. It knows no task."""
