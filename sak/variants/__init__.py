"""What is not in the paper's figure: other stems, decoders, loss weightings, LoRA, probes and amalgamation."""
