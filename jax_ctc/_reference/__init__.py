# SPDX-License-Identifier: Apache-2.0
"""The primitives in pure JAX. Platforms without kernels run them, and they define "correct"."""

from .align import align as align
from .beam import beam as beam
from .ctc import cotangent as cotangent
from .ctc import forward as forward
from .ctc import hvp as hvp
from .ctc import loss as loss
from .ctc import tangent as tangent
