"""The readers that `tools/fuzz.py` feeds, with valid inputs of each."""
