"""Boundary F-measure (odsF, OIS, AP) by the SEISM protocol over the BSDS matching, without MATLAB.

`suppress` (non-maximum suppression), `thin`, `ground_truth` and `matching` are its steps; `score` puts them together.
"""
