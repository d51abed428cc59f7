# SPDX-License-Identifier: Apache-2.0
"""CTC under the names and signatures of other libraries. None of them needs to be installed."""

from . import keras as keras
from . import optax as optax
from . import theano as theano
from . import torch as torch
