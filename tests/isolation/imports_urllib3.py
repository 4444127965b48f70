"""A version whose library looks for IPv6 when it is imported."""

import urllib3  # noqa: F401  requests, ccxt and freqtrade import it

from tests.isolation.strategies_under_test import Tricks


class Imports(Tricks): ...
