"""The shipped English model: what it is put together from and the data that it learns from."""
