"""The data sets' evaluation protocols: who is query, who is gallery, and what is skipped."""

from vireid.protocols.llcm import LLCM
from vireid.protocols.regdb import RegDB
from vireid.protocols.sysu import SYSUMM01
from vireid.report import Report, ReportRow

__all__ = ["LLCM", "SYSUMM01", "RegDB", "Report", "ReportRow"]
