"""iStar, which M2OST is compared with: HIPT's features of a whole slide, a head per superpixel; exported and served.

Only ``networks`` and ``export`` need PyTorch.

Source: Zhang et al., "Inferring super-resolution tissue architecture by integrating spatial transcriptomics with
histology", Nature Biotechnology 2024, and Chen et al., "Scaling Vision Transformers to Gigapixel Images via
Hierarchical Self-Supervised Learning", CVPR 2022. Written from a description of the method.
"""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
