"""The data sets' evaluation protocols: who is query, who is gallery, and what is skipped.

The names load on first use, so that importing `vireid.protocols.names` loads no PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

from vireid.protocols.names import DIRECTIONS, dataset_name

if TYPE_CHECKING:
    from vireid.protocols.llcm import LLCM
    from vireid.protocols.regdb import RegDB
    from vireid.protocols.report import QueryResults, Report, ReportRow
    from vireid.protocols.sysu import SYSUMM01

__all__ = ["DIRECTIONS", "LLCM", "SYSUMM01", "QueryResults", "RegDB", "Report", "ReportRow", "dataset_name"]

_HOMES = {"LLCM": "llcm", "RegDB": "regdb", "SYSUMM01": "sysu"}


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module(f"vireid.protocols.{_HOMES.get(name, 'report')}"), name)
    raise AttributeError(f"module 'vireid.protocols' has no attribute {name!r}")
