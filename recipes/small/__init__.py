"""The shipped English model: Whisper base, SmolLM2-135M-Instruct and summarization tokens, and the data they learn from."""
