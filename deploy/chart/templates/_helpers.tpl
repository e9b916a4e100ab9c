{{- define "m2ost.labels" -}}
app.kubernetes.io/name: m2ost
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "m2ost.selector" -}}
app.kubernetes.io/name: m2ost
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "m2ost.image" -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .appVersion }}{{ end }}
{{- end }}

{{- define "m2ost.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "m2ost.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The folder that is served: of a volume, fetched, or with engines. */}}
{{- define "m2ost.folder" -}}
{{- if .Values.engines.toolkit }}/served/release{{ else if .Values.release.url }}/served/source{{ else }}/release{{ end }}
{{- end }}

{{/* Set where the server's certificate and token are. */}}
{{- define "m2ost.credentials" -}}
{{- if .Values.tls.secret }}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
{{- if .Values.tls.mutual }}
- --tls-ca=/tls/ca.crt
{{- end }}
{{- end }}
{{- if .Values.token.secret }}
- --token-file=/token/token
{{- end }}
{{- end }}

{{- define "m2ost.healthy" -}}
exec:
  command: [/bin/sh, -c, 'test -n "$(find /tmp/m2ost-ready -mmin -1)"']
timeoutSeconds: 5
{{- end }}

{{- define "m2ost.check" -}}
{{- if and .Values.release.url (not .Values.release.sha256) }}
{{- fail "release.sha256: give the sha256 of the release's manifest.json, so that nothing else is served" }}
{{- end }}
{{- if eq (empty .Values.release.url) (empty .Values.release.volume) }}
{{- fail "release: give release.volume, or release.url with release.sha256" }}
{{- end }}
{{- range .Values.pools }}
{{- if and (not .gpu) (not (hasPrefix "cpu" .profile)) (ne .profile "auto") }}
{{- fail (printf "pool %s: profile %s needs a GPU; give gpu.resource, such as nvidia.com/gpu, or a profile that begins with cpu" .name .profile) }}
{{- end }}
{{- if and $.Values.engines.toolkit (not .gpu) }}
{{- fail (printf "pool %s: engines.toolkit builds an engine on the node's GPU; give gpu.resource, or leave it empty" .name) }}
{{- end }}
{{- if and (contains "tensorrt" .profile) (ne .profile "onnxruntime-tensorrt") (not $.Values.engines.toolkit) (not $.Values.release.volume) }}
{{- fail (printf "pool %s: profile %s needs an engine; give engines.toolkit" .name .profile) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "m2ost.resources" -}}
{{- $gpu := .pool.gpu | default dict -}}
{{- $resources := deepCopy .pool.resources -}}
{{- if $gpu -}}
{{- $limits := merge (dict $gpu.resource (toString $gpu.count)) ($resources.limits | default dict) -}}
{{- $resources = merge (dict "limits" $limits) $resources -}}
{{- end -}}
{{- toYaml $resources }}
{{- end }}

{{- define "m2ost.releaseMount" -}}
- name: release
  mountPath: /release
  readOnly: true
  {{- with .Values.release.path }}
  subPath: {{ . }}
  {{- end }}
{{- end }}

{{/* Which series are of a pool's pods. */}}
{{- define "m2ost.pods" -}}
namespace="{{ .root.Release.Namespace }}",pod=~"{{ .root.Release.Name }}-{{ .pool.name }}-.*"
{{- end }}

{{/* How many replicas' engines are at work, in percent of one: 150 where three are half used. */}}
{{- define "m2ost.usedEngines" -}}
{{- $pods := include "m2ost.pods" . -}}
100 * sum(rate(m2ost_engine_busy_seconds_total{ {{- $pods -}} }[1m])) / avg(m2ost_engine_runs_at_once{ {{- $pods -}} })
{{- end }}

{{/* Where certificates and the token are found, in the server and in its clients. */}}
{{- define "m2ost.credentialMounts" -}}
{{- if .Values.tls.secret }}
- {name: tls, mountPath: /tls, readOnly: true}
{{- end }}
{{- if .Values.token.secret }}
- {name: token, mountPath: /token, readOnly: true}
{{- end }}
{{- end }}

{{- define "m2ost.credentialVolumes" -}}
{{- with .Values.tls.secret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.token.secret }}
- name: token
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
