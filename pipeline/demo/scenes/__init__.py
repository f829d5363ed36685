"""Where things stand, what lights them and who looks: from a seed to a scene."""
