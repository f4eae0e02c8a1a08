"""Reinforcement-learning agents, one algorithm a file."""
