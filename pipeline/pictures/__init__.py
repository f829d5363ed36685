"""Predictions as files and as pictures: how each task is stored, coloured, and put together in panels."""
