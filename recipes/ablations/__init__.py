"""What the method claims, each claim trained with and without, at a scale that a processor core can afford."""
