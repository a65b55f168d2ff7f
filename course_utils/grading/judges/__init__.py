"""What judges the answers of each assignment, in a module named by its topic; check cells give the inputs."""
