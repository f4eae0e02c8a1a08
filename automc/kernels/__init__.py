"""How a decision runs fast: compiled for this processor at first use, never needed for a result."""
