"""The spool: files on local disk that take a run's measurements, so that training never waits.

`flerm_client.spool.frames` documents the file format.
"""

from flerm_client.spool.paths import default_folder, quarantine, quarantined, spool_files
from flerm_client.spool.reader import SpoolContent, SpoolReader, read
from flerm_client.spool.writer import SpoolWriter

__all__ = [
    "SpoolContent",
    "SpoolReader",
    "SpoolWriter",
    "default_folder",
    "quarantine",
    "quarantined",
    "read",
    "spool_files",
]
