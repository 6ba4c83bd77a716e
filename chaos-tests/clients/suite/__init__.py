"""Real S3 clients against a real zone. `python -m suite <holdfast binary> [words of check names]`."""
