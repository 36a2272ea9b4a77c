"""Training of the embedded model: `python -m torch_backend.training CONFIG.json` (three stages, resumable)."""
