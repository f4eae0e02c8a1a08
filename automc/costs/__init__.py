"""What a policy costs: one file a cost, all evaluated for many candidates at once from the layers' shapes."""
