"""Published weights to Speech-XL checkpoints: `python -m converters`. One file per foreign format."""
