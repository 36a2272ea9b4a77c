"""The page: layout, event handlers and pictures. No model logic."""
