"""Giving a compressed model back what it lost, by gradient descent."""
