{{/* Name of everything of this release: the release's own where it says servewright. */}}
{{- define "servewright.name" -}}
{{- $name := ternary .Release.Name (printf "%s-servewright" .Release.Name) (contains "servewright" .Release.Name) -}}
{{ $name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* What selects the operator's pods. A Deployment's selector is immutable: this never changes. */}}
{{- define "servewright.selectorLabels" -}}
app.kubernetes.io/name: servewright-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of everything. */}}
{{- define "servewright.labels" -}}
{{ include "servewright.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Name of the operator's ServiceAccount. */}}
{{- define "servewright.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "servewright.name" .) }}
{{- else -}}
{{ required "serviceAccount.create is false, so the chart makes no ServiceAccount; set serviceAccount.name to one that exists" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{/* An image's full name, from (list . .Values.image "image"): by digest where there is one. */}}
{{- define "servewright.image" -}}
{{- $top := index . 0 -}}{{- $image := index . 1 -}}{{- $key := index . 2 -}}
{{- $registry := required "registry is empty; set it to where the images are, such as localhost" $top.Values.registry -}}
{{- $repository := required (printf "%s.repository is empty; set it to the image's name within %s" $key $registry) $image.repository -}}
{{- $version := $image.tag | default $top.Chart.AppVersion | printf ":%s" -}}
{{ $registry }}/{{ $repository }}{{ with $image.digest }}@{{ . }}{{ else }}{{ $version }}{{ end }}
{{- end }}
