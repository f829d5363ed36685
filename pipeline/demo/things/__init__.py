"""What scenes are made of: materials, solids, and makers of things, each of one class."""
