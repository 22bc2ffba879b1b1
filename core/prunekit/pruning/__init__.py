"""A pruning step: a criterion proposes, the engine applies and measures, a scheduler accepts or takes back."""
