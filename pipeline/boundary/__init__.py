"""Boundary evaluation of predictions made anywhere: a folder of probability maps against a data set's ground truth."""

from pipeline.boundary.evaluation import BoundaryConfig, evaluate_boundaries, parse_protocol
from pipeline.boundary.report import BoundaryReport, write_report

__all__ = ["BoundaryConfig", "BoundaryReport", "evaluate_boundaries", "parse_protocol", "write_report"]
