"""What the custom resources of deploy/ may hold, strictly: of KEDA's, KubeRay's and the Prometheus operator's kinds.

Written after their definitions, which neither Kubernetes nor its validator carries: all fields of the levels that are
filled, and the types of those that are.
"""

from __future__ import annotations

from typing import Any

STRING, INTEGER, OBJECT = {"type": "string"}, {"type": "integer"}, {"type": "object"}
STRINGS = {"type": "object", "additionalProperties": STRING}


def _strict(filled: dict[str, Any], others: str = "", required: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object that has these fields, others of any type, and none besides."""
    properties = {name: {} for name in others.split()} | filled
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _kind(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    fields = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": OBJECT, "spec": spec}
    return _strict(fields, required=("apiVersion", "kind", "metadata", "spec"))


_SELECTOR = _strict({"matchLabels": STRINGS}, "matchExpressions")
_TRIGGER = _strict(
    {
        "type": {"const": "prometheus"},
        "metadata": _strict(
            {"serverAddress": STRING, "query": STRING, "threshold": STRING},
            "activationThreshold namespace customHeaders queryParameters ignoreNullValues unsafeSsl authModes timeout",
            ("serverAddress", "query", "threshold"),
        ),
    },
    "authenticationRef metricType name useCachedMetrics",
    ("type", "metadata"),
)
_ENDPOINT = _strict(
    {
        "port": STRING,
        "path": {"type": "string", "pattern": "^/"},
        "interval": {"type": "string", "pattern": "^[0-9]+(s|m)$"},
    },
    "portNumber targetPort scheme params scrapeTimeout tlsConfig bearerTokenSecret honorLabels honorTimestamps "
    "trackTimestampsStaleness basicAuth oauth2 authorization metricRelabelings relabelings proxyUrl noProxy "
    "proxyFromEnvironment proxyConnectHeader followRedirects enableHttp2 filterRunning",
)
_RULE = _strict(
    {"alert": STRING, "expr": STRING, "for": STRING, "labels": STRINGS, "annotations": STRINGS},
    "record keep_firing_for",
    ("expr",),
)

_RAY_GROUP = {"rayStartParams": STRINGS, "template": _strict({"metadata": OBJECT, "spec": OBJECT}, required=("spec",))}
_RAY_CLUSTER = _strict(
    {
        "rayVersion": STRING,
        "authOptions": _strict({"mode": {"enum": ["disabled", "token"]}}),
        "headGroupSpec": _strict(_RAY_GROUP, "enableIngress headService labels resources serviceType", ("template",)),
        "workerGroupSpecs": {
            "type": "array",
            "minItems": 1,
            "items": _strict(
                {"groupName": STRING, "replicas": INTEGER, "minReplicas": INTEGER, "maxReplicas": INTEGER} | _RAY_GROUP,
                "idleTimeoutSeconds labels numOfHosts resources scaleStrategy suspend",
                ("groupName", "maxReplicas", "minReplicas", "template"),
            ),
        },
    },
    "autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headServiceAnnotations managedBy suspend "
    "upgradeStrategy",
    ("headGroupSpec",),
)

SCHEMAS: dict[str, dict[str, Any]] = {
    "ScaledObject": _kind(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _strict(
            {
                "scaleTargetRef": _strict({"name": STRING}, "apiVersion kind envSourceContainerName", ("name",)),
                "minReplicaCount": INTEGER,
                "maxReplicaCount": INTEGER,
                "triggers": {"type": "array", "items": _TRIGGER, "minItems": 1},
            },
            "pollingInterval initialCooldownPeriod cooldownPeriod idleReplicaCount advanced fallback",
            ("scaleTargetRef", "triggers"),
        ),
    ),
    "PodMonitor": _kind(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        _strict(
            {
                "jobLabel": STRING,
                "selector": _SELECTOR,
                "podMetricsEndpoints": {"type": "array", "items": _ENDPOINT, "minItems": 1},
            },
            "attachMetadata bodySizeLimit convertClassicHistogramsToNHCB fallbackScrapeProtocol keepDroppedTargets "
            "labelLimit labelNameLengthLimit labelValueLengthLimit namespaceSelector "
            "nativeHistogramBucketLimit nativeHistogramMinBucketFactor podTargetLabels sampleLimit scrapeClass "
            "scrapeClassicHistograms scrapeProtocols selectorMechanism targetLimit",
            ("selector", "podMetricsEndpoints"),
        ),
    ),
    "PrometheusRule": _kind(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        _strict(
            {
                "groups": {
                    "type": "array",
                    "items": _strict(
                        {"name": STRING, "interval": STRING, "rules": {"type": "array", "items": _RULE}},
                        "labels limit query_offset partial_response_strategy",
                        ("name",),
                    ),
                }
            }
        ),
    ),
    "RayJob": _kind(
        "ray.io/v1",
        "RayJob",
        _strict(
            {
                "entrypoint": STRING,
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "backoffLimit": INTEGER,
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": INTEGER,
                "rayClusterSpec": _RAY_CLUSTER,
            },
            "activeDeadlineSeconds clusterSelector deletionStrategy entrypointNumCpus entrypointNumGpus "
            "entrypointResources jobId managedBy metadata runtimeEnvYAML submitterConfig "
            "submitterPodTemplate suspend",
        ),
    ),
}
