"""Ways to send less or less often: communication hooks, model averaging, uneven inputs."""
