"""Facts about the user's model: layers, coupled channels, shrinking, and the check that shrinking is right."""
