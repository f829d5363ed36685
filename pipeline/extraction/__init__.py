"""The parts of the stage `extract`: planning, the work of one block, calibration, repair."""
