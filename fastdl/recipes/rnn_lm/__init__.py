"""RecurrentLanguageModel on the characters of a text."""
