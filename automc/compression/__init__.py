"""From a policy and a model to a compressed model."""
