"""The parts of export: where the student comes from, the formats, the model card."""
