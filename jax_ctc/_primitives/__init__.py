# SPDX-License-Identifier: Apache-2.0
"""The primitives of CTC: what they compute, their rules, and what runs them."""

from .ctc import cotangent_p as cotangent_p
from .ctc import forward_p as forward_p
from .ctc import hvp_p as hvp_p
from .ctc import loss_p as loss_p
from .ctc import tangent_p as tangent_p
