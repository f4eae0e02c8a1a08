"""Searches driven by Ray Tune: a searcher that keeps the study, and a trainable that scores."""
