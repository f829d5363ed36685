"""Moves the data: shards, caches, stages. The method itself is the package `sak`."""
