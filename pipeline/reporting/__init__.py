"""The parts of `pipeline.report`: runs as they lie on disk, charts, and one page of HTML."""
