"""Which choice each tensor gets, so that the damage is least and everything fits under the cap.

Names, bytes and damages only: nothing here sees a weight.

``frontier``  candidates, the lower hull of one tensor, the sweep over all of them, what-if
``plan``      the plan under a cap, exact, with its proven gap
"""
