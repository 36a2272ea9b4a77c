"""The needle grid: one askable sentence at every depth of recordings of every length. It knows no task."""
