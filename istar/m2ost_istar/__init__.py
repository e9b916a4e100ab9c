"""The baseline: iStar's inference (HIPT features of a whole slide, a head per superpixel), without its networks.

Source: Zhang et al., "Inferring super-resolution tissue architecture by integrating spatial transcriptomics with
histology", Nature Biotechnology 2024, and Chen et al., "Scaling Vision Transformers to Gigapixel Images via
Hierarchical Self-Supervised Learning", CVPR 2022. Written from a description of the method.
"""
