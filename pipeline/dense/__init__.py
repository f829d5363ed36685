"""Networks for dense prediction, their data and their measurement: shared by later stages."""
