"""Images: the index of a shard set, access to any image of it, and views."""
