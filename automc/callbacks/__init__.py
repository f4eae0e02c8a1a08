"""What watches a search: the contract in `callback`, one file each; none can stop it."""
