"""What a compressed model is worth."""
