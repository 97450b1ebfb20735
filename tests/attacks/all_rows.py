"""All rows, in the order of the table."""

from tests.attacks import connections, texts, updates
from tests.attacks.rows import ROWS as _FOUND

_MODULES = [module.__name__ for module in (connections, updates, texts)]
ROWS = dict(sorted(_FOUND.items(), key=lambda item: _MODULES.index(item[1].act.__module__)))
