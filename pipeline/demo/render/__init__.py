"""From a scene to its picture and all its labels, by casting rays."""
