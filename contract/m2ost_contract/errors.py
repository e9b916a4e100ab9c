"""The root of every error of this project."""

from __future__ import annotations


class M2OSTError(Exception):
    """Base of every error that tells a user what is wrong, where, and what to do next.

    ::

        M2OSTError
        ├── ManifestError, ReleaseError        a release                    m2ost_contract
        ├── ServedNameError                    names on a server        m2ost_contract
        ├── PositionsError                     places on an array       m2ost_contract
        ├── EngineError                        its engine cannot run here   m2ost_contract
        ├── PreprocessError                    slides and spots             m2ost_preprocess.errors
        ├── ClientError                        server, answers, results     m2ost_client.errors
        ├── CheckpointError, DataError, ConfigError, TrainingError          m2ost
        ├── ExportError                        checkpoint to release        m2ost_export.errors
        ├── DomainsError                       domains of spots             m2ost_domains.errors
        └── LoadTestError                      loads and measurements       m2ost_loadtests.errors
    """
