"""A third backend in plain numpy and float64: the reference that both twins are held against."""
