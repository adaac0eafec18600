{{/*
What this chart refuses to be installed beside. Looks at the cluster that helm talks to; `helm template` talks to none
and finds nothing. The controller looks again at every start, for those who apply plain manifests.
*/}}

{{- define "shorthorn.refuse" -}}
{{- include "shorthorn.refuseLonghorn" . -}}
{{- include "shorthorn.refuseForeignImages" . -}}
{{- include "shorthorn.refuseForeignDriver" . -}}
{{- include "shorthorn.refuseWithoutSnapshots" . -}}
{{- end -}}

{{- define "shorthorn.refuseLonghorn" -}}
{{- $found := list -}}
{{- range $kind := list "backingimagemanagers" "engineimages" "engines" "instancemanagers" "replicas" "settings" "sharemanagers" -}}
{{- $name := printf "%s.longhorn.io" $kind -}}
{{- if lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $name -}}
{{- $found = append $found (printf "CustomResourceDefinition %s" $name) -}}
{{- end -}}
{{- end -}}
{{- range $set := (lookup "apps/v1" "DaemonSet" "" "").items -}}
{{- if eq $set.metadata.name "longhorn-manager" -}}
{{- $found = append $found (printf "DaemonSet %s/longhorn-manager" $set.metadata.namespace) -}}
{{- end -}}
{{- end -}}
{{- if $found -}}
{{- fail (printf "\n\nLonghorn is in this cluster: %s.\nShorthorn serves the same kind BackingImage (and, unless you change it, the same driver name), so one cluster can have one of them.\nEither install Shorthorn in another cluster, or uninstall Longhorn first, together with its CustomResourceDefinitions\n(that deletes Longhorn's volumes: take what you need out of them before).\n" (join ", " $found)) -}}
{{- end -}}
{{- end -}}

{{- define "shorthorn.refuseForeignImages" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "backingimages.longhorn.io" -}}
{{- if $crd -}}
{{- if ne (dig "labels" "app.kubernetes.io/name" "" $crd.metadata) "shorthorn" -}}
{{- fail "\n\nCustomResourceDefinition backingimages.longhorn.io exists and is not Shorthorn's: another system keeps BackingImages here.\nSave what you need of `kubectl get backingimages.longhorn.io -A -o yaml`, delete the CustomResourceDefinition\n(that deletes all BackingImages), then install Shorthorn.\n" -}}
{{- end -}}
{{- range $image := (lookup "longhorn.io/v1beta2" "BackingImage" "" "").items -}}
{{- if ne $image.metadata.namespace $.Release.Namespace -}}
{{- fail (printf "\n\nBackingImage %s is in namespace %s, and this release would serve namespace %s: nobody would see to it.\nInstall into namespace %s, or delete that BackingImage.\n" $image.metadata.name $image.metadata.namespace $.Release.Namespace $image.metadata.namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "shorthorn.refuseForeignDriver" -}}
{{- $driver := lookup "storage.k8s.io/v1" "CSIDriver" "" .Values.driverName -}}
{{- if $driver -}}
{{- if ne (dig "labels" "app.kubernetes.io/name" "" $driver.metadata) "shorthorn" -}}
{{- fail (printf "\n\nCSIDriver %s exists and is not Shorthorn's. Uninstall the driver that owns it, or choose another name: --set driverName=…\n" .Values.driverName) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "shorthorn.refuseWithoutSnapshots" -}}
{{- $isConnected := lookup "v1" "Namespace" "" "kube-system" -}}
{{- if and $isConnected .Values.snapshotClass.create (not .Values.snapshotController.enabled) -}}
{{- if not (lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "volumesnapshotclasses.snapshot.storage.k8s.io") -}}
{{- fail "\n\nThis cluster has no snapshot controller: kind VolumeSnapshotClass does not exist.\nLet this chart install one: --set snapshotController.enabled=true\nOr go without snapshots: --set snapshotClass.create=false\n" -}}
{{- end -}}
{{- end -}}
{{- end -}}
