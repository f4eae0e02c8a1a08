"""The command line: automc tasks, inspect, profile, search, pareto, show, apply, evaluate, export, bench."""

from automc.cli.app import main

__all__ = ["main"]
