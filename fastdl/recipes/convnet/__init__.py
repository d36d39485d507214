"""ConvNet on digits."""
