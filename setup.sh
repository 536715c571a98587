#!/usr/bin/env bash
# From a clone to a working endpoint on OpenShift AI or Kubernetes with KServe. Safe to run again: a second run changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NAMESPACE=atelier OVERLAY=dev PARTS="" IMAGE="" REPOSITORY="" TIMEOUT=900 DRY_RUN="" UNINSTALL=""
KNOWN_PARTS="storage storage-route pipelines workbench build queue"

usage() {
  cat <<'EOF'
./setup.sh [options]       needs oc or kubectl, logged in

  --namespace NAME    project to work in, made if missing              (default: atelier)
  --overlay NAME      what to serve, a folder of manifests/overlays    (default: dev)
  --with PART,...     also storage, storage-route, pipelines, workbench, build, queue, or all
  --image REF         image to run instead of the one in the manifests
  --repository URL    what the build and the workbench clone           (default: this clone's origin)
  --timeout SECONDS   how long to wait for the endpoint                (default: 900)
  --dry-run           check, print the whole plan, apply nothing
  --uninstall         remove what was applied; volumes, Secrets and the project stay
EOF
}

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
ok() { printf '  ok       %s\n' "$*"; }
note() { printf '  note     %s\n' "$*"; }
MISSING=0
missing() { # what, how to get it
  MISSING=$((MISSING + 1))
  printf '  MISSING  %s\n           -> %s\n' "$1" "$2"
}
die() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }

parse_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --namespace | --overlay | --with | --image | --repository | --timeout)
        [ $# -ge 2 ] || die "$1 needs a value"
        case $1 in
          --namespace) NAMESPACE=$2 ;;
          --overlay) OVERLAY=$2 ;;
          --with) PARTS=${2//,/ } ;;
          --image) IMAGE=$2 ;;
          --repository) REPOSITORY=$2 ;;
          --timeout) TIMEOUT=$2 ;;
        esac
        shift 2
        ;;
      --dry-run) DRY_RUN=yes; shift ;;
      --uninstall) UNINSTALL=yes; shift ;;
      -h | --help) usage; exit 0 ;;
      *) usage >&2; die "unknown option $1" ;;
    esac
  done
  [ "$PARTS" != all ] || PARTS=$KNOWN_PARTS
  for part in $PARTS; do
    [[ " $KNOWN_PARTS " == *" $part "* ]] || die "--with $part: known parts are $KNOWN_PARTS"
  done
  [ -d "manifests/overlays/$OVERLAY" ] || die "--overlay $OVERLAY: known overlays are $(ls manifests/overlays | tr '\n' ' ')"
  [[ $NAMESPACE =~ ^[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?$ ]] ||
    die "--namespace $NAMESPACE: lower-case letters, digits and dashes, at most 53 characters"
  [[ $TIMEOUT =~ ^[0-9]+$ ]] || die "--timeout $TIMEOUT: whole seconds"
}

find_client() {
  for CLI in oc kubectl; do
    if command -v "$CLI" >/dev/null; then return; fi
  done
  die "neither oc nor kubectl is on PATH: https://docs.openshift.com/container-platform/latest/cli_reference/openshift_cli/getting-started-cli.html"
}

in_namespace() { "$CLI" --namespace "$NAMESPACE" "$@"; }

# -- what will be applied: two streams of YAML, made in a scratch folder ------------------------------------------------

render() {
  mkdir -p build
  SCRATCH=$(mktemp -d build/setup.XXXXXX)
  trap 'rm -rf "$SCRATCH"' EXIT
  REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url 2>/dev/null || true)}
  if [[ " $PARTS " == *" build "* && -z $IMAGE ]]; then
    IMAGE=image-registry.openshift-image-registry.svc:5000/$NAMESPACE/atelier:0.1.0
  fi
  local images=""
  # The tag's suffix (-vllm) belongs to the overlay; only an image given without a tag keeps it.
  if [ -n "$IMAGE" ]; then
    images=$'images:\n  - name: quay.io/atelier/atelier\n    newName: '${IMAGE%:*}$'\n    newTag: '${IMAGE##*:}
  fi

  cp -r manifests/setup "$SCRATCH/setup"
  local part drop='^$'
  for part in $KNOWN_PARTS; do
    [[ " $PARTS " == *" $part "* ]] || drop+="|^  - $part\$"
  done
  grep -vE "$drop" manifests/setup/kustomization.yaml |
    sed -e "s|^namespace: .*|namespace: $NAMESPACE|" -e "s|url=.*|url=${REPOSITORY:-https://github.com/example/atelier.git}|" \
      >"$SCRATCH/setup/kustomization.yaml"
  printf '%s\n' "$images" >>"$SCRATCH/setup/kustomization.yaml"
  "$CLI" kustomize "$SCRATCH/setup" >"$SCRATCH/setup.yaml"

  mkdir "$SCRATCH/overlay"
  {
    printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: %s\n' "$NAMESPACE"
    printf 'resources: [../../../manifests/overlays/%s]\n%s\n' "$OVERLAY" "$images"
  } >"$SCRATCH/overlay/kustomization.yaml"
  "$CLI" kustomize "$SCRATCH/overlay" >"$SCRATCH/overlay.yaml"
  SERVICE_KIND=$(kinds "$SCRATCH/overlay.yaml" | awk '$2 ~ /InferenceService$/ {print $2}')
  SERVICE=$(kinds "$SCRATCH/overlay.yaml" | awk '$2 ~ /InferenceService$/ {print $3}')
}

kinds() { # lines "apiVersion kind name" of the objects in files
  awk '
    function out() { if (kind != "") print api, kind, name; kind = ""; name = "" }
    /^---/ { out() } /^apiVersion:/ { api = $2 } /^kind:/ { kind = $2 }
    /^[a-z]/ { top = $1 } top == "metadata:" && /^  name:/ { name = $2 }
    END { out() }' "$@"
}

used() { grep -qE "$1" "$SCRATCH"/setup.yaml "$SCRATCH"/overlay.yaml; }

# -- checks: everything that is missing, and how to get it -------------------------------------------------------------

check_login() {
  local answer
  answer=$("$CLI" auth can-i get pods --namespace "$NAMESPACE" 2>&1) || true
  case $answer in
    *yes | *no) ok "logged in to $("$CLI" config current-context 2>/dev/null || say 'the cluster')" ;;
    *) die "not logged in ($answer): oc login https://API:6443, or choose a context with kubectl config use-context" ;;
  esac
}

check_rights() {
  local resource verb=create
  if "$CLI" get namespace "$NAMESPACE" -o name >/dev/null 2>&1; then
    ok "project $NAMESPACE is there"
  elif [ "$("$CLI" auth can-i create namespaces 2>/dev/null)" = yes ]; then
    ok "project $NAMESPACE can be made"
  else
    missing "project $NAMESPACE, and no right to make it" "oc new-project $NAMESPACE, or ask an administrator for it"
  fi
  for resource in inferenceservices.serving.kserve.io servingruntimes.serving.kserve.io serviceaccounts roles.rbac.authorization.k8s.io; do
    if [ "$("$CLI" auth can-i "$verb" "$resource" --namespace "$NAMESPACE" 2>/dev/null)" = yes ]; then
      ok "may $verb $resource"
    else
      missing "the right to $verb $resource in $NAMESPACE" "an administrator: oc adm policy add-role-to-user admin YOU -n $NAMESPACE"
    fi
  done
}

how_to_get() { # API group
  case $1 in
    serving.kserve.io) say "OpenShift: install the OpenShift AI operator and set kserve to Managed in its DataScienceCluster; elsewhere: install KServe 0.15 or newer" ;;
    datasciencepipelinesapplications.opendatahub.io) say "set datasciencepipelines (3.x: aipipelines) to Managed in the DataScienceCluster, or leave out --with pipelines" ;;
    kubeflow.org) say "set workbenches to Managed in the DataScienceCluster, or leave out --with workbench" ;;
    monitoring.coreos.com) say "install the Prometheus operator (OpenShift has it: enableUserWorkload: true)" ;;
    kueue.x-k8s.io) say "install Kueue, or leave out --with queue" ;;
    keda.sh) say "install the Custom Metrics Autoscaler operator (KEDA)" ;;
    *.openshift.io) say "this part is for OpenShift: leave it out" ;;
    *) say "install the operator that brings $1" ;;
  esac
}

check_kinds() {
  local api kind name served
  served=$("$CLI" api-resources --no-headers 2>/dev/null | awk '{print $(NF-2), $NF}')
  while read -r api kind; do
    if grep -qxF "$api $kind" <<<"$served"; then
      [[ $api != *.* ]] || ok "$kind ($api)"
    else
      missing "$kind $api$(awk -v k="$kind" '$2 == k {printf " (the cluster has %s)", $1}' <<<"$served")" "$(how_to_get "${api%%/*}")"
    fi
  done < <(kinds "$SCRATCH/setup.yaml" "$SCRATCH/overlay.yaml" | awk '{print $1, $2}' | sort -u)
  if used 'autoscalerClass: keda'; then
    if grep -q '^keda.sh/' <<<"$served"; then ok "KEDA"; else missing "KEDA, which this overlay scales with" "$(how_to_get keda.sh)"; fi
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
  wanted=$(grep -ohE 'NVIDIA-[A-Za-z0-9-]+' "$SCRATCH/overlay.yaml" | sort -u)
  if [ -n "$wanted" ] && ! grep -qwF "$wanted" <<<"$nodes"; then
    missing "a node labelled nvidia.com/gpu.product=$(tr '\n' '|' <<<"$wanted" | sed 's/|$//')" "patch nodeSelector in a kustomization of your own, or add such a node"
  fi
}

check_storage() {
  used '^kind: PersistentVolumeClaim' || return 0
  if "$CLI" get storageclass -o 'jsonpath={range .items[*]}{.metadata.annotations.storageclass\.kubernetes\.io/is-default-class}{"\n"}{end}' 2>/dev/null | grep -q true; then
    ok "a default storage class"
  else
    missing "a default storage class" "oc patch storageclass NAME -p '{\"metadata\":{\"annotations\":{\"storageclass.kubernetes.io/is-default-class\":\"true\"}}}'"
  fi
}

check_inputs() { # Secrets and volumes that the overlay expects to find
  local key claim
  key=$(awk '/^      storage:/ {inside = 1; next} inside && /key:/ {print $2; exit}' "$SCRATCH/overlay.yaml")
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

# -- apply, wait, remove -----------------------------------------------------------------------------------------------

plan() {
  local api kind name
  while read -r api kind name; do
    if in_namespace get "$kind.${api%%/*}" "$name" -o name >/dev/null 2>&1 || in_namespace get "$kind" "$name" -o name >/dev/null 2>&1; then
      say "  would update if changed   $kind/$name"
    else
      say "  would create              $kind/$name"
    fi
  done < <(kinds "$SCRATCH/setup.yaml" "$SCRATCH/overlay.yaml")
  ! needs_api_key || say "  would create              Secret/atelier-api-keys (a random key, not printed)"
  [[ " $PARTS " != *" build "* ]] || built || say "  would build               ImageStreamTag/atelier:0.1.0"
  say "  would wait up to ${TIMEOUT} s for $SERVICE_KIND/$SERVICE"
}

needs_api_key() { used 'name: atelier-api-keys' && ! in_namespace get secret atelier-api-keys -o name >/dev/null 2>&1; }
built() { in_namespace get imagestreamtag atelier:0.1.0 -o name >/dev/null 2>&1; }

apply() {
  "$CLI" apply -f "$SCRATCH/setup.yaml"
  if needs_api_key; then
    # Through standard input: an argument would be visible in the process list.
    printf 'apiVersion: v1\nkind: Secret\nmetadata:\n  name: atelier-api-keys\nstringData:\n  API_KEYS: %s\n' \
      "$(head -c 32 /dev/urandom | base64 | tr -d '+/=\n')" | in_namespace create -f -
  fi
  if [[ " $PARTS " == *" build "* ]] && ! built; then
    in_namespace start-build atelier --follow --wait
  fi
  "$CLI" apply -f "$SCRATCH/overlay.yaml"
}

POD_STATES='{range .items[*]}{.metadata.name}{" "}{.status.phase}{range .status.conditions[?(@.reason=="Unschedulable")]}{" "}{.reason}{end}{range .status.initContainerStatuses[*]}{" "}{.state.waiting.reason}{" "}{.state.terminated.reason}{" "}{.lastState.terminated.reason}{end}{range .status.containerStatuses[*]}{" "}{.state.waiting.reason}{" "}{.lastState.terminated.reason}{end}{"\n"}{end}'
pod_states() { in_namespace get pods -l "serving.kserve.io/inferenceservice=$SERVICE" -o "jsonpath=$POD_STATES" 2>/dev/null | tr -s ' '; }

remedy() { # a pod's states
  case $1 in
    *ImagePullBackOff* | *ErrImagePull*) say "the image cannot be pulled: --image REF, --with build, or a pull secret on ServiceAccount atelier" ;;
    *Unschedulable*) say "no node has room: free GPUs, memory, or the node label of the overlay are missing" ;;
    *OOMKilled*) say "killed for memory: raise limits.memory, see the sizing table in docs/deploying.md" ;;
    *CrashLoopBackOff* | *Error*) say "it ends by itself: $CLI -n $NAMESPACE logs -l serving.kserve.io/inferenceservice=$SERVICE --all-containers --previous" ;;
    *) say "docs/deploying.md has a table of symptoms" ;;
  esac
}

wait_ready() {
  local deadline=$((SECONDS + TIMEOUT)) state last="" states
  while [ "$SECONDS" -le "$deadline" ]; do
    state=$(in_namespace get "$SERVICE_KIND" "$SERVICE" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null || true)
    [ "$state" != True ] || { say "  ${SECONDS}s ready"; return 0; }
    states=$(pod_states || true)
    if [ "$states" != "$last" ]; then say "  ${SECONDS}s ${states:-no pod yet}"; last=$states; else printf '.'; fi
    sleep "${POLL_SECONDS:-5}"
  done
  say ""
  say "$SERVICE_KIND/$SERVICE is not ready after $TIMEOUT s. Pods: ${states:-none}"
  say "Why: $(remedy "$states")"
  say "Last warnings in $NAMESPACE:"
  in_namespace get events --field-selector type=Warning --sort-by .lastTimestamp -o custom-columns=OBJECT:.involvedObject.name,REASON:.reason,MESSAGE:.message 2>/dev/null | tail -n 8
  return 1
}

finish() {
  local url auth=""
  url=$(in_namespace get "$SERVICE_KIND" "$SERVICE" -o 'jsonpath={.status.url}')
  ! used 'name: atelier-api-keys' || auth=" -H \"Authorization: Bearer \$($CLI -n $NAMESPACE get secret atelier-api-keys -o jsonpath={.data.API_KEYS} | base64 -d)\""
  ! used 'enable-auth: "true"' || auth=" -H \"Authorization: Bearer \$($CLI whoami -t)\""
  say "$url"
  say ""
  if [ "$SERVICE_KIND" = InferenceService ] && [[ $OVERLAY != glm-4* && $OVERLAY != glm-m* && $OVERLAY != gemma* ]]; then
    say "curl -k$auth $url/v1/models/$SERVICE:predict -d '{\"instances\": [{\"prompt\": \"a red circle\"}]}' -H 'Content-Type: application/json'"
  else
    say "curl -k$auth $url/v1/chat/completions -d '{\"model\": \"$SERVICE\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}' -H 'Content-Type: application/json'"
  fi
}

uninstall() {
  local api kind name
  while read -r api kind name; do
    case $kind in
      Namespace | PersistentVolumeClaim) say "  kept $kind/$name" ;;
      *)
        if [ -n "$DRY_RUN" ]; then say "  would delete $kind/$name"; else
          in_namespace delete "$kind.${api%%/*}" "$name" --ignore-not-found 2>/dev/null || in_namespace delete "$kind" "$name" --ignore-not-found
        fi
        ;;
    esac
  done < <(kinds "$SCRATCH/overlay.yaml" "$SCRATCH/setup.yaml")
  say "Volumes and Secrets stay; to remove everything: $CLI delete namespace $NAMESPACE"
}

main() {
  parse_options "$@"
  find_client
  render
  if [ -n "$UNINSTALL" ]; then
    step "Removing overlay $OVERLAY and the parts from $NAMESPACE"
    check_login
    uninstall
    return
  fi
  step "Checking the cluster for overlay $OVERLAY in $NAMESPACE"
  check_login; check_rights; check_kinds; check_gpus; check_storage; check_inputs; check_image
  if [ -n "$DRY_RUN" ]; then
    step "Plan (nothing is applied)"
    plan
  fi
  [ "$MISSING" -eq 0 ] || die "$MISSING thing(s) missing, see above; nothing was applied"
  [ -z "$DRY_RUN" ] || return 0
  step "Applying"
  apply
  step "Waiting for $SERVICE_KIND/$SERVICE (up to $TIMEOUT s)"
  wait_ready
  step "Endpoint"
  finish
}

main "$@"
