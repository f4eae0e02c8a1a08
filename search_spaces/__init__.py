"""Ready-made search spaces: functions from a model's facts to the open decisions."""
