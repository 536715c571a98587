#!/usr/bin/env bash
# From a clone to a working endpoint on OpenShift AI or Kubernetes with KServe. Safe to run again: a second run changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NAMESPACE=atelier OVERLAY=dev PARTS="" IMAGE="" REPOSITORY="" TIMEOUT=900 DRY_RUN="" UNINSTALL=""
# The tag of the image that the build makes.
VERSION=$(sed -n 's/.*kind: ImageStreamTag, name: "atelier:\(.*\)"}.*/\1/p' manifests/setup/build/buildconfig.yaml)
KNOWN_PARTS="storage storage-route pipelines workbench build tekton queue"

usage() {
  cat <<'EOF'
./setup.sh [options]       needs oc or kubectl, logged in

  --namespace NAME    project to work in, made if missing              (default: atelier)
  --overlay NAME      what to serve, a folder of manifests/overlays    (default: dev)
  --with PART,...     also storage, storage-route, pipelines, workbench, build, tekton, queue, or all
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
  [ -d "manifests/overlays/$OVERLAY" ] || die "--overlay $OVERLAY: known overlays are $(cd manifests/overlays && echo *)"
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
    IMAGE=image-registry.openshift-image-registry.svc:5000/$NAMESPACE/atelier
  fi

  cp -r manifests/setup "$SCRATCH/setup"
  local part drop='^$'
  for part in $KNOWN_PARTS; do
    [[ " $PARTS " == *" $part "* ]] || drop+="|^  - $part\$"
  done
  {
    grep -vE "$drop" manifests/setup/kustomization.yaml |
      sed -e "s|^namespace: .*|namespace: $NAMESPACE|" \
        -e "s|url=.*|url=${REPOSITORY:-https://github.com/example/atelier.git}|"
    image_override
  } >"$SCRATCH/setup/kustomization.yaml"
  "$CLI" kustomize "$SCRATCH/setup" >"$SCRATCH/setup.yaml"

  mkdir "$SCRATCH/overlay"
  {
    printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: %s\n' "$NAMESPACE"
    printf 'resources: [../../../manifests/overlays/%s]\n' "$OVERLAY"
    image_override
  } >"$SCRATCH/overlay/kustomization.yaml"
  "$CLI" kustomize "$SCRATCH/overlay" >"$SCRATCH/overlay.yaml"
  read -r SERVICE_KIND SERVICE < <(objects "$SCRATCH/overlay.yaml" | awk '$2 ~ /InferenceService$/ {print $2, $3}')
  if [[ " $PARTS " == *" build "* ]] && used 'image: .*-vllm$'; then
    die "--with build makes the image without vLLM, which overlay $OVERLAY needs: make image TARGET=engine-vllm, make push, --image"
  fi
}

image_override() { # a name without a tag keeps the tag of the manifests, such as 1.2.0-vllm
  [ -n "$IMAGE" ] || return 0
  printf 'images:\n  - name: quay.io/atelier/atelier\n'
  case $IMAGE in
    *@*) printf '    newName: %s\n    digest: %s\n' "${IMAGE%@*}" "${IMAGE#*@}" ;;
    *) # a colon before the last slash is a port
      if [[ ${IMAGE##*/} == *:* ]]; then
        printf '    newName: %s\n    newTag: "%s"\n' "${IMAGE%:*}" "${IMAGE##*:}"
      else
        printf '    newName: %s\n' "$IMAGE"
      fi
      ;;
  esac
}

objects() { # a line "apiVersion Kind name kind.group" for each object in files
  awk '
    function out() {
      group = api ~ /\// ? "." substr(api, 1, index(api, "/") - 1) : ""
      if (kind != "") print api, kind, name, tolower(kind) group
      kind = ""; name = ""
    }
    FNR == 1 || /^---/ { out() } /^apiVersion:/ { api = $2 } /^kind:/ { kind = $2 }
    /^[a-z]/ { top = $1 } top == "metadata:" && /^  name:/ { name = $2 }
    END { out() }' "$@"
}

used() { grep -qE "$1" "$SCRATCH"/setup.yaml "$SCRATCH"/overlay.yaml; }

# shellcheck source=manifests/setup/checks.sh
source manifests/setup/checks.sh

# -- apply, wait, remove -----------------------------------------------------------------------------------------------

plan() {
  local kind name ref
  while read -r _ kind name ref; do
    if in_namespace get "$ref" "$name" -o name >/dev/null 2>&1; then
      say "  would update if changed   $kind/$name"
    else
      say "  would create              $kind/$name"
    fi
  done < <(objects "$SCRATCH/setup.yaml" "$SCRATCH/overlay.yaml")
  ! needs_api_key || say "  would create              Secret/atelier-api-keys (a random key, not printed)"
  [[ " $PARTS " != *" build "* ]] || built || say "  would build               ImageStreamTag/atelier:$VERSION"
  say "  would wait up to ${TIMEOUT} s for $SERVICE_KIND/$SERVICE"
}

needs_api_key() { used 'name: atelier-api-keys' && ! in_namespace get secret atelier-api-keys -o name >/dev/null 2>&1; }
built() { in_namespace get imagestreamtag "atelier:$VERSION" -o name >/dev/null 2>&1; }

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
  local path body
  if used 'value: text$' || [ "$SERVICE_KIND" = LLMInferenceService ]; then
    path=/v1/chat/completions
    body="{\"model\": \"$SERVICE\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}"
  else
    path=/v1/models/$SERVICE:predict
    body='{"instances": [{"prompt": "a red circle"}]}'
  fi
  say "curl -k$auth -H 'Content-Type: application/json' $url$path -d '$body'"
}

uninstall() {
  local kind name ref others
  # Overlays share the runtime, the account and what watches them.
  others=$(in_namespace get inferenceservice -o 'jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}' | grep -vxF "$SERVICE" || true)
  while read -r _ kind name ref; do
    if [ "$kind" = Namespace ] || [ "$kind" = PersistentVolumeClaim ]; then
      say "  kept $kind/$name"
    elif [ -n "$others" ] && [ "$name" != "$SERVICE" ]; then
      say "  kept $kind/$name, which may serve $(tr '\n' ' ' <<<"$others")"
    elif [ -n "$DRY_RUN" ]; then
      say "  would delete $kind/$name"
    else
      in_namespace delete "$ref" "$name" --ignore-not-found
    fi
  done < <(objects "$SCRATCH/overlay.yaml" "$SCRATCH/setup.yaml")
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
