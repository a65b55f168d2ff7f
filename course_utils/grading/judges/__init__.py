"""What the check cells of the assignments call: a module for each assignment, a function for each exercise."""
