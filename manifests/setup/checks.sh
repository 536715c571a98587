# shellcheck shell=bash
# The checks of setup.sh: everything that is missing and how to get it. Sourced; uses its CLI, NAMESPACE, PARTS and SCRATCH.

check_login() {
  local answer
  answer=$("$CLI" auth can-i get pods --namespace "$NAMESPACE" 2>&1) || true
  case $answer in
    *yes | *no) ok "logged in to $("$CLI" config current-context 2>/dev/null || say 'the cluster')" ;;
    *refused* | *"no such host"* | *timeout* | *"Unable to connect"*)
      die "the API server does not answer (${answer##*$'\n'}): is it up, and is a VPN or proxy needed?" ;;
    *) die "not logged in (${answer##*$'\n'}): oc login https://API:6443, or choose a context with kubectl config use-context" ;;
  esac
}

allowed() { [ "$("$CLI" auth can-i "$1" "$2" --namespace "$NAMESPACE" 2>/dev/null)" = yes ]; }

check_rights() { # on every kind that will be applied, so that nothing is left half
  local resource resources rights verb refused phase
  if phase=$("$CLI" get namespace "$NAMESPACE" -o 'jsonpath={.status.phase}' 2>/dev/null); then
    if [ "$phase" = Terminating ]; then
      missing "project $NAMESPACE is being deleted, so nothing can be made in it" "wait until it is gone, or --namespace; $CLI get namespace $NAMESPACE -o yaml says what holds it"
    else
      ok "project $NAMESPACE is there"
    fi
    if ! allowed patch namespaces; then
      # The administrator of an OpenShift project may change the project, not the namespace.
      note "Namespace $NAMESPACE is left as it is: no right to change it, and none is needed"
      without Namespace "$SCRATCH/setup.yaml" >"$SCRATCH/mine.yaml"
      mv "$SCRATCH/mine.yaml" "$SCRATCH/setup.yaml"
    fi
  elif allowed create namespaces; then
    ok "project $NAMESPACE can be made"
  else
    missing "project $NAMESPACE, and no right to make it" "oc new-project $NAMESPACE, or ask an administrator for it"
  fi
  resources=$(objects "$SCRATCH/setup.yaml" "$SCRATCH/overlay.yaml" | awk '$2 != "Namespace" {print $4}' | sort -u | plural)
  rights=$(rights_to create patch <<<"$resources")
  while read -r resource; do
    refused=""
    for verb in create patch; do
      grep -qxF "$resource $verb true" <<<"$rights" && continue
      refused=yes
      missing "the right to $verb $resource in $NAMESPACE" "an administrator: oc adm policy add-role-to-user admin YOU -n $NAMESPACE"
    done
    [ -n "$refused" ] || ok "may create and patch $resource"
  done <<<"$resources"
}

rights_to() { # verbs; lines of resource.group: lines "resource.group verb true" or "... false", asked in one call
  local resource verb group
  while read -r resource; do
    group=${resource#*.}
    [[ $resource == *.* ]] || group=""
    for verb in "$@"; do
      printf -- '---\napiVersion: authorization.k8s.io/v1\nkind: SelfSubjectAccessReview\nspec:\n  resourceAttributes: {namespace: "%s", verb: %s, resource: %s, group: "%s"}\n' \
        "$NAMESPACE" "$verb" "${resource%%.*}" "$group"
    done
  done >"$SCRATCH/rights.yaml"
  # The core group has no name, and leaves its dot behind.
  { "$CLI" create --validate=false -f "$SCRATCH/rights.yaml" -o 'jsonpath={.spec.resourceAttributes.resource}.{.spec.resourceAttributes.group} {.spec.resourceAttributes.verb} {.status.allowed}{"\n"}' 2>/dev/null || true; } |
    sed 's/\. / /'
}

plural() { # kind.group to resource.group
  sed -E 's/^([a-z]+)cy(\.|$)/\1cies\2/; t; s/^([a-z]+ss)(\.|$)/\1es\2/; t; s/^([a-z]+)(\.|$)/\1s\2/'
}

how_to_get() { # API group
  case $1 in
    serving.kserve.io) say "OpenShift: install the OpenShift AI operator and set kserve to Managed in its DataScienceCluster; elsewhere: install KServe 0.15 or newer" ;;
    datasciencepipelinesapplications.opendatahub.io) say "set datasciencepipelines (3.x: aipipelines) to Managed in the DataScienceCluster, or leave out --with pipelines" ;;
    kubeflow.org) say "set workbenches to Managed in the DataScienceCluster, or leave out --with workbench" ;;
    monitoring.coreos.com) say "install the Prometheus operator (OpenShift has it: enableUserWorkload: true)" ;;
    tekton.dev) say "install the OpenShift Pipelines operator (Tekton), or leave out --with tekton" ;;
    kueue.x-k8s.io) say "install Kueue, or leave out --with queue" ;;
    keda.sh) say "install the Custom Metrics Autoscaler operator (KEDA)" ;;
    *.openshift.io) say "this part is for OpenShift: leave it out" ;;
    *) say "install the operator that brings $1" ;;
  esac
}

served_kinds() { # group/version: the kinds of it that are served, whether it is the preferred version or not
  local path=/apis/$1
  [[ $1 == */* ]] || path=/api/$1
  "$CLI" get --raw "$path" 2>/dev/null | grep -oE '"kind": ?"[A-Za-z]+"' | sed 's/.*"\([A-Za-z]*\)"$/\1/'
}

check_kinds() {
  local api kind version there
  # An older Kueue serves the former version alone.
  if used 'kueue.x-k8s.io/v1beta2' && ! served_kinds kueue.x-k8s.io/v1beta2 | grep -qx LocalQueue; then
    sed -i 's|kueue.x-k8s.io/v1beta2|kueue.x-k8s.io/v1beta1|' "$SCRATCH/setup.yaml"
  fi
  while read -r api kind; do
    if served_kinds "$api" | grep -qx "$kind"; then
      [[ $api != *.* ]] || ok "$kind ($api)"
    else
      there=""
      for version in $("$CLI" api-versions 2>/dev/null | grep "^${api%%/*}/" || true); do
        ! served_kinds "$version" | grep -qx "$kind" || there=" (the cluster has $version)"
      done
      missing "$kind $api$there" "$(how_to_get "${api%%/*}")"
    fi
  done < <(objects "$SCRATCH/setup.yaml" "$SCRATCH/overlay.yaml" | awk '{print $1, $2}' | sort -u)
  if used 'autoscalerClass: keda'; then
    if served_kinds keda.sh/v1alpha1 | grep -qx ScaledObject; then ok "KEDA"; else missing "KEDA, which this overlay scales with" "$(how_to_get keda.sh)"; fi
  fi
}

check_gpus() {
  used 'nvidia.com/gpu: "?[1-9]' || { ok "no GPU needed"; return; }
  local nodes wanted
  if ! nodes=$("$CLI" get nodes -o 'jsonpath={range .items[*]}{.status.allocatable.nvidia\.com/gpu} {.metadata.labels.nvidia\.com/gpu\.product}{"\n"}{end}' 2>/dev/null); then
    note "GPU nodes were not checked: no right to list nodes"
    return
  fi
  if ! awk '$1 > 0 {found = 1} END {exit !found}' <<<"$nodes"; then
    missing "a node with an NVIDIA GPU" "add one and install Node Feature Discovery and the GPU operator, or take --overlay dev"
    return
  fi
  ok "GPUs: $(awk '$1 > 0 {print $1 " x " ($2 ? $2 : "unlabelled")}' <<<"$nodes" | sort | uniq -c | awk '{printf "%s%s node(s) with %s %s %s", sep, $1, $2, $3, $4; sep = ", "}')"
  wanted=$(grep -ohE 'NVIDIA-[A-Za-z0-9-]+' "$SCRATCH/overlay.yaml" | sort -u || true)
  if [ -n "$wanted" ] && ! grep -qwF "$wanted" <<<"$nodes"; then
    missing "a node labelled nvidia.com/gpu.product=$(tr '\n' '|' <<<"$wanted" | sed 's/|$//')" "patch nodeSelector in a kustomization of your own, or add such a node"
  fi
}

check_storage() {
  used '^kind: PersistentVolumeClaim' || return 0
  local classes
  if ! classes=$("$CLI" get storageclass -o 'jsonpath={range .items[*]}{.metadata.annotations.storageclass\.kubernetes\.io/is-default-class} {.metadata.annotations.storageclass\.beta\.kubernetes\.io/is-default-class}{"\n"}{end}' 2>/dev/null); then
    note "storage classes were not checked: no right to list them"
  elif grep -q true <<<"$classes"; then
    ok "a default storage class"
  else
    missing "a default storage class" "oc patch storageclass NAME -p '{\"metadata\":{\"annotations\":{\"storageclass.kubernetes.io/is-default-class\":\"true\"}}}'"
  fi
}

check_inputs() { # Secrets and volumes that the overlay expects to find
  local key claim
  key=$(awk '/^      storage:/ {inside = 1; next} inside && /key:/ {print $2; exit}' "$SCRATCH/overlay.yaml")
  [ -n "$key" ] || ! used '^kind: Notebook' || key=atelier-models # OpenShift AI refuses a workbench without it
  if [ -n "$key" ] && [[ " $PARTS " != *" storage "* ]]; then
    if in_namespace get secret "$key" -o name >/dev/null 2>&1; then
      ok "data connection $key"
    else
      missing "data connection $key in $NAMESPACE" "manifests/setup/connection with your own store, or --with storage for a demo"
    fi
  fi
  claim=$(grep -ohE 'pvc://[a-z0-9-]+' "$SCRATCH/overlay.yaml" | sed 's|pvc://||' | head -n 1 || true)
  if [ -n "$claim" ]; then
    if in_namespace get persistentvolumeclaim "$claim" -o name >/dev/null 2>&1; then
      ok "volume $claim"
    else
      missing "PersistentVolumeClaim $claim in $NAMESPACE" "make it and fill it, for example with atelier fetch in a Job"
    fi
  fi
  if used 'name: hf-token' && ! in_namespace get secret hf-token -o name >/dev/null 2>&1; then
    note "no Secret hf-token: models that are gated on the Hub will not load (kubectl create secret generic hf-token --from-file=HF_TOKEN=FILE)"
  fi
}

check_image() {
  local image
  [[ " $PARTS " != *" build "* ]] || { ok "the image is built in the cluster"; return; }
  image=$(grep -ohE 'image: .*' "$SCRATCH/overlay.yaml" | awk '{print $2; exit}')
  if [ "$CLI" = oc ] && oc image info "$image" --filter-by-os linux/amd64 >/dev/null 2>&1; then
    ok "image $image can be pulled from here"
  elif command -v skopeo >/dev/null && skopeo inspect --no-tags "docker://$image" >/dev/null 2>&1; then
    ok "image $image can be pulled from here"
  elif [ "$CLI" = oc ] || command -v skopeo >/dev/null; then
    missing "image $image cannot be pulled from here" "--with build makes it in the cluster (OpenShift); or make image push, and --image REF"
  else
    note "image $image was not checked: needs oc or skopeo"
  fi
}
