"""How a column's arrays lie on disk: as zarr or as tars of webdataset. `open_store` of `column.py` opens either."""

FORMATS = ("zarr", "webdataset")
