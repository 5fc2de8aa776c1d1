"""The data sets' evaluation protocols: who is query, who is gallery, and what is skipped."""

from vireid.protocols.llcm import LLCM
from vireid.protocols.regdb import RegDB
from vireid.protocols.report import QueryResults, Report, ReportRow
from vireid.protocols.sysu import SYSUMM01

__all__ = ["LLCM", "SYSUMM01", "QueryResults", "RegDB", "Report", "ReportRow"]
