# SPDX-License-Identifier: Apache-2.0
# A package, so that its conftest.py is not taken for the one in tests/.
