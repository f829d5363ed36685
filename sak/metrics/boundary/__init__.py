"""Boundary F-measure (odsF, OIS, AP) by the SEISM protocol over the BSDS matching, without MATLAB.

`thin` (with non-maximum suppression) and `matching` are its steps; `score` reads the truth and puts them together.
"""
