"""What is left of deleted rows in a database's files, and how it goes.

SQLite overwrites what is deleted (`secure_delete`), and its write-ahead log holds what was written before until it is
emptied. PostgreSQL keeps old rows until a vacuum, its log until that is recycled; there is no more to do from here.
"""

import logging
from typing import Final

from service.database import Database
from service.errors import ServiceError
from service.speakers.tables import metadata

_WAIT_MS: Final = 250  # for readers; nobody can write meanwhile
_log = logging.getLogger(__name__)


def scrub(database: Database) -> bool:
    """Take what was deleted out of the files.

    Returns:
        Whether that was done; while others read an older moment of the database it has to be tried again.
    """
    try:
        with database.outside() as connection:
            if database.is_sqlite:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {_WAIT_MS}")
                return bool(connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0] == 0)
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f"VACUUM {table.name}")
    except ServiceError as error:
        _log.warning("what was deleted may still be in the database's files: %s", error.detail)
        return False
    return True
