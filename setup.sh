#!/usr/bin/env bash
# From a clone to a working endpoint on OpenShift AI or Kubernetes with KServe. Safe to run again: a second run changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NAMESPACE=atelier OVERLAY=dev PARTS="" IMAGE="" REPOSITORY="" TIMEOUT=900 DRY_RUN="" UNINSTALL="" OPEN=""
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
  --open              let anybody call it: without this an endpoint asks for a key or a token
  --dry-run           check, print the whole plan, apply nothing
  --uninstall         remove what was applied, parts included; volumes, Secrets and the project stay
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
      --open) OPEN=yes; shift ;;
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
    printf '%s\n' "$RECORD"
    image_override
  } >"$SCRATCH/setup/kustomization.yaml"
  "$CLI" kustomize "$SCRATCH/setup" >"$SCRATCH/setup.yaml"

  mkdir "$SCRATCH/overlay"
  {
    printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: %s\n' "$NAMESPACE"
    printf 'resources: [../../../manifests/overlays/%s]\n' "$OVERLAY"
    printf '%s\n' "$RECORD"
    image_override
  } >"$SCRATCH/overlay/kustomization.yaml"
  render_overlay
  guard_entrance
  read -r SERVICE_KIND SERVICE < <(objects "$SCRATCH/overlay.yaml" | awk '$2 ~ /InferenceService$/ {print $2, $3}')
  if [[ " $PARTS " == *" build "* ]] && used 'image: .*-vllm$'; then
    die "--with build makes the image without vLLM, which overlay $OVERLAY needs: make image TARGET=engine-vllm, make push, --image"
  fi
}

# What setup.sh makes carries this label, by which --uninstall finds it again.
MADE_BY=atelier.dev/made-by=setup
RECORD="labels: [{pairs: {${MADE_BY%=*}: ${MADE_BY#*=}}}]"

guard_entrance() { # an endpoint that asks nobody who he is gets API keys, unless --open
  [ -z "$OPEN" ] || return 0
  grep -q '^kind: InferenceService' "$SCRATCH/overlay.yaml" || return 0
  ! grep -qE 'name: atelier-api-keys|enable-auth: "true"' "$SCRATCH/overlay.yaml" || return 0
  printf 'components: [../../../manifests/components/auth/api-keys]\n' >>"$SCRATCH/overlay/kustomization.yaml"
  render_overlay
}

render_overlay() { # the autoscaler's query spells its namespace out, where kustomize does not look
  "$CLI" kustomize "$SCRATCH/overlay" | sed "s|^\( *namespace:\) atelier\$|\1 $NAMESPACE|" >"$SCRATCH/overlay.yaml"
}

image_override() { # a name without a tag keeps the tag of the manifests, such as 1.2.0-vllm
  [ -n "$IMAGE" ] || return 0
  local name
  printf 'images:\n'
  # An overlay may have renamed it, to a registry of its own.
  for name in quay.io/atelier/atelier $(sed -n 's/^ *newName: *//p' "manifests/overlays/$OVERLAY/kustomization.yaml"); do
    printf '  - name: %s\n' "$name"
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
  done
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

only() { # kinds, file: the objects of these kinds
  awk -v kinds=" $1 " '
    function out() { if (index(kinds, " " kind " ")) printf "---\n%s", text; text = ""; kind = "" }
    /^---/ { out(); next } { text = text $0 "\n" } /^kind:/ { kind = $2 } END { out() }' "$2"
}

without() { # kinds, file: all other objects
  awk -v kinds=" $1 " '
    function out() { if (kind != "" && !index(kinds, " " kind " ")) printf "---\n%s", text; text = ""; kind = "" }
    /^---/ { out(); next } { text = text $0 "\n" } /^kind:/ { kind = $2 } END { out() }' "$2"
}

# shellcheck source=manifests/setup/checks.sh
source manifests/setup/checks.sh

# shellcheck source=manifests/setup/changes.sh
source manifests/setup/changes.sh

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
  check_login; check_kinds; check_rights; check_gpus; check_storage; check_inputs; check_image
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
