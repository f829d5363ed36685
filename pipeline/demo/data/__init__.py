"""The demo data on disk: ImageNet-like shards and the two downstream layouts. Nothing here needs torch."""
