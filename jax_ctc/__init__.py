# SPDX-License-Identifier: Apache-2.0
"""The CTC loss for JAX: a primitive with compiled kernels."""

__version__ = "0.1.0"

from . import compat as compat
from ._align import Alignment as Alignment
from ._align import ctc_align as ctc_align
from ._beam import ctc_beam_search_decode as ctc_beam_search_decode
from ._check import check as check
from ._error_rate import LabelErrors as LabelErrors
from ._error_rate import label_error_rate as label_error_rate
from ._export import export_checks as export_checks
from ._greedy import Decoded as Decoded
from ._greedy import ctc_greedy_decode as ctc_greedy_decode
from ._kernels import build_info as build_info
from ._linear import ctc_linear as ctc_linear
from ._loss import ctc as ctc
from ._occupancy import ctc_occupancy as ctc_occupancy
from ._spans import Spans as Spans
from ._spans import label_confidence as label_confidence
from ._spans import label_spans as label_spans

__all__ = [
    "Alignment",
    "Decoded",
    "LabelErrors",
    "Spans",
    "build_info",
    "check",
    "compat",
    "ctc",
    "ctc_align",
    "ctc_beam_search_decode",
    "ctc_greedy_decode",
    "ctc_linear",
    "ctc_occupancy",
    "export_checks",
    "label_confidence",
    "label_error_rate",
    "label_spans",
]
