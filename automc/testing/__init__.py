"""Contract packs: run them on a criterion, cost, space, agent or searcher of your own, as automc's own tests do."""

from automc.testing.contracts import check_agent, check_cost, check_criterion, check_searcher, check_space

__all__ = ["check_agent", "check_cost", "check_criterion", "check_searcher", "check_space"]
