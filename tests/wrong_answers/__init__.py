"""Plausible wrong answers, a room an assignment: (exercise, code in place of its solution, what its check says)."""
