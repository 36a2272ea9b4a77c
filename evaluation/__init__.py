"""How good a model's answers are: JSON lines in, a report out. It knows no task of its own."""
