{{/* Names, labels and images, each written once. */}}

{{- define "shorthorn.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "shorthorn.labels" -}}
app.kubernetes.io/name: shorthorn
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Labels that select pods; must never change between versions. */}}
{{- define "shorthorn.selector" -}}
app.kubernetes.io/name: shorthorn
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "shorthorn.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* Call with (dict "root" $ "name" "csi-provisioner" "of" .Values.sidecars.provisioner). */}}
{{- define "shorthorn.sidecarImage" -}}
{{- printf "%s/%s:%s" .root.Values.sidecars.registry .name .of.tag -}}
{{- end -}}

{{/* The driver's name as the sidecars write it in names of their Leases. */}}
{{- define "shorthorn.leaseName" -}}
{{- regexReplaceAll "[^a-zA-Z0-9-]" .Values.driverName "-" -}}
{{- end -}}

{{/* Where the kubelet looks for the node's socket, on the host. */}}
{{- define "shorthorn.pluginDir" -}}
{{- printf "%s/plugins/%s" .Values.kubeletDir .Values.driverName -}}
{{- end -}}

{{/* Nothing of a container's own needs a capability or writes to its root file system. */}}
{{- define "shorthorn.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
