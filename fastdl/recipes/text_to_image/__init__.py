"""TextToImage on captioned digits."""
