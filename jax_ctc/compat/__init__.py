# SPDX-License-Identifier: Apache-2.0
"""CTC under the names and signatures of other libraries."""

from . import theano as theano
