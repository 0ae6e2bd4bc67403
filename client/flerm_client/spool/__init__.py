"""The spool: measurements on local disk, so that training never waits for a registry. See `flerm_client.spool.frames`."""

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
