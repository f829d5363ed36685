"""What a person asks of a cache: plan, inventory, verify, prune, copy."""
