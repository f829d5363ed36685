"""Stage 3: train the student on a data set's tasks."""
