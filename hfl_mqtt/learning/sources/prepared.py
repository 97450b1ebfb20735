"""The training process's side of sources: files are followed, and a window is read again only where it has changed."""

from __future__ import annotations

from pathlib import Path

from hfl_mqtt.learning.contracts import Options
from hfl_mqtt.learning.sources.following import Say, follow
from hfl_mqtt.learning.sources.source import SOURCE, TABLE, Source, source_of
from hfl_mqtt.learning.sources.table import Table, read_mark, read_table
from hfl_mqtt.learning.sources.window import Window


class Prepared:
    """The tables of the clients of this process.

    Args:
        say: takes a sentence about what is wrong with a file.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._tables: dict[str, Table] = {}

    def options(self, client: str, options: Options) -> Options:
        """Return a client's data options; where they name a source, with its `Table` as it is now in place of that.

        Raises:
            TaskError: a file or the window cannot be read, or there are too few rows yet.
            Unwritable: the disk takes no rows.
        """
        source = source_of(options)
        if source is None:
            return options
        if source.kind != "mqtt":
            self._follow(source)
        table = self._tables.get(client)
        if table is None or table.mark != read_mark(source):
            table = self._tables[client] = read_table(source)
        return {**{key: value for key, value in options.items() if key != SOURCE}, TABLE: table}

    def _follow(self, source: Source) -> None:
        window = Window(Path(source.window), source)
        try:
            if window.damage:
                self._say(window.damage)
            follow(source, window, self._say)
        finally:
            window.close()
