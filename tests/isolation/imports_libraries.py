"""A version whose libraries look around when they are imported: for IPv6, and for other libraries."""

import urllib3  # noqa: F401  requests, ccxt and freqtrade import it

from tests.isolation.strategies_under_test import Tricks

try:  # as scikit-learn does. dask then reads its own process in /proc
    import dask  # noqa: F401
except ImportError:
    WITHOUT_DASK = True


class Imports(Tricks): ...
