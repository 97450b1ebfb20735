"""Where a client's own data comes from when it is not the task's business: sensor topics, CSV and Parquet that grow.

Whatever the source, readings become rows in one `Window` on the disk of the device, and a task reads them as a `Table`
of named columns. Nothing here imports torch; only `table` and `parquet` import what an idle agent must not hold.
"""
