"""Wrong answers, a module for each assignment: the exercise, code in place of its solution, what its check says."""
