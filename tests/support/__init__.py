# SPDX-License-Identifier: Apache-2.0
"""What tests share: problems with a name, what they should cost, and what runs the kernels."""
