"""What proposes policies: one file an algorithm, all behind ask and tell."""
