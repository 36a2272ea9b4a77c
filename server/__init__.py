"""`python -m speech_xl serve`: the model for programs, over HTTP, in the shapes of OpenAI's API."""
