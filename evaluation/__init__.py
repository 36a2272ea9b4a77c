"""How good a model's answers are: recordings with known answers, metrics, and reports."""
