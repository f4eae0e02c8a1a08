"""Which weights matter: one file a family, one score per weight, summed over a group for channels."""
