# shellcheck shell=bash
# shellcheck disable=SC2153 # SERVICE is read in render, by a name that shellcheck takes for a misspelling
# What setup.sh does to a cluster: plan, apply, wait, remove. Sourced; uses its CLI, NAMESPACE, PARTS, SERVICE and SCRATCH.

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
  local waits_for_secrets="Notebook DataSciencePipelinesApplication"
  apply_file <(without "Job $waits_for_secrets" "$SCRATCH/setup.yaml")
  if needs_api_key; then
    # Through standard input: an argument would be visible in the process list.
    printf 'apiVersion: v1\nkind: Secret\nmetadata:\n  name: atelier-api-keys\n  labels: {%s: %s}\nstringData:\n  API_KEYS: %s\n' \
      "${MADE_BY%=*}" "${MADE_BY#*=}" "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n')" | in_namespace create -f -
  fi
  if [[ " $PARTS " == *" build "* ]] && ! built; then
    in_namespace start-build atelier --follow --wait
  fi
  say_mode_as_the_cluster
  # The runtime before the Jobs: what serves must not stay old because a Job cannot be changed.
  apply_file <(without Job "$SCRATCH/overlay.yaml")
  apply_jobs "$SCRATCH/setup.yaml"
  apply_jobs "$SCRATCH/overlay.yaml"
  if grep -qE '^kind: (Notebook|DataSciencePipelinesApplication)' "$SCRATCH/setup.yaml"; then
    await_secret atelier-models
    apply_file <(only "$waits_for_secrets" "$SCRATCH/setup.yaml")
  fi
}

apply_file() { # a pipe may be empty, which kubectl takes for an error
  local text
  text=$(cat "$1")
  [ -z "$text" ] || printf '%s\n' "$text" >"$SCRATCH/part.yaml"
  [ -z "$text" ] || "$CLI" apply -f "$SCRATCH/part.yaml"
}

apply_jobs() { # a Job's template cannot be changed: one that differs is replaced
  local jobs=$SCRATCH/jobs.yaml said
  only Job "$1" >"$jobs"
  [ -s "$jobs" ] || return 0
  if said=$("$CLI" apply -f "$jobs" 2>&1); then say "$said"; return; fi
  [[ $said == *immutable* ]] || die "$said"
  "$CLI" delete -f "$jobs" --ignore-not-found
  "$CLI" apply -f "$jobs"
}

await_secret() {
  local deadline=$((SECONDS + TIMEOUT))
  until in_namespace get secret "$1" -o name >/dev/null 2>&1; do
    [ "$SECONDS" -le "$deadline" ] ||
      die "Secret $1 was not made in $TIMEOUT s: $CLI -n $NAMESPACE logs job/atelier-s3-setup says why"
    sleep "${POLL_SECONDS:-5}"
  done
}

# KServe 0.16 renamed RawDeployment to Standard and writes its own word over ours. The one that stays is ours then, or
# each run would change the endpoint; a server-side dry run asks for it.
say_mode_as_the_cluster() {
  local service=$SCRATCH/service.yaml mode
  only InferenceService "$SCRATCH/overlay.yaml" | sed 's|\(deploymentMode:\) Standard|\1 RawDeployment|' >"$service"
  grep -q 'deploymentMode: RawDeployment' "$service" || return 0
  mode=$("$CLI" apply --server-side --force-conflicts --field-manager=atelier-setup --dry-run=server -f "$service" \
    -o 'jsonpath={.metadata.annotations.serving\.kserve\.io/deploymentMode}' 2>/dev/null) || return 0
  sed -i "s|\(deploymentMode:\) Standard|\1 $mode|" "$SCRATCH/overlay.yaml"
}

POD_STATES='{range .items[*]}{.metadata.name}{" "}{.status.phase}{range .status.conditions[?(@.reason=="Unschedulable")]}{" "}{.reason}{end}{range .status.initContainerStatuses[*]}{" "}{.state.waiting.reason}{" "}{.state.terminated.reason}{" "}{.lastState.terminated.reason}{end}{range .status.containerStatuses[*]}{" "}{.state.waiting.reason}{" "}{.lastState.terminated.reason}{end}{"\n"}{end}'
pod_states() {
  in_namespace get pods -l "serving.kserve.io/inferenceservice=$SERVICE" -o "jsonpath=$POD_STATES" 2>/dev/null | tr -s ' ' | sed 's/ $//'
}

remedy() { # a pod's states
  case $1 in
    *ImagePullBackOff* | *ErrImagePull*) say "the image cannot be pulled: --image REF, --with build, or a pull secret on ServiceAccount atelier" ;;
    *Unschedulable*) say "no node has room: free GPUs, memory, or the node label of the overlay are missing" ;;
    *OOMKilled*) say "killed for memory: raise limits.memory, see the sizing table in docs/deploying.md" ;;
    *CrashLoopBackOff* | *Error*) say "it ends by itself: $CLI -n $NAMESPACE logs -l serving.kserve.io/inferenceservice=$SERVICE --all-containers --previous" ;;
    *) say "docs/deploying.md has a table of symptoms" ;;
  esac
}

DEPLOYED='{.metadata.generation} {.status.observedGeneration} {.spec.replicas} {.status.replicas} {.status.updatedReplicas} {.status.availableReplicas}{"\n"}{range .spec.template.spec.containers[?(@.name=="kserve-container")]}image={.image}{"\n"}{range .env[*]}{.name}={.value}{"\n"}{end}{end}'

# KServe's own observedGeneration is the Deployment's, so it does not say that the last change was seen. The Deployment
# does: it has the image and the variables that were applied, and all its pods are new and available.
rolled_out() {
  local there line
  [ "$SERVICE_KIND" = InferenceService ] && ! used 'deploymentMode: Serverless' || return 0
  there=$(in_namespace get deployment "$SERVICE-predictor" -o "jsonpath=$DEPLOYED" 2>/dev/null) || return 1
  awk 'NR == 1 {exit !($2 >= $1 && $4 == $3 && $5 == $3 && $6 == $3)}' <<<"$there" || return 1
  while read -r line; do
    grep -qxF -- "$line" <<<"$there" || return 1
  done < <(wanted)
}

wanted() { # lines of what the Deployment must have: NAME=VALUE of the endpoint, image of its runtime
  only InferenceService "$SCRATCH/overlay.yaml" | awk '/^      - name: / {name = $3} /^        value: / {sub(/^ +value: /, ""); gsub(/^"|"$/, ""); print name "=" $0}'
  only ServingRuntime "$SCRATCH/overlay.yaml" | awk '/^    image: / {print "image=" $2; exit}'
}

wait_ready() {
  local deadline=$((SECONDS + TIMEOUT)) state last="" states
  while [ "$SECONDS" -le "$deadline" ]; do
    state=$(in_namespace get "$SERVICE_KIND" "$SERVICE" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null || true)
    if [ "$state" = True ] && rolled_out; then say "  ${SECONDS}s ready"; return 0; fi
    states=$(pod_states || true)
    if [ "$states" != "$last" ]; then say "  ${SECONDS}s ${states:-no pod yet}"; last=$states; else printf '.'; fi
    sleep "${POLL_SECONDS:-5}"
  done
  say ""
  say "$SERVICE_KIND/$SERVICE is not ready after $TIMEOUT s. Pods: ${states:-none}"
  say "Why: $(remedy "$states")"
  in_namespace get deployment "$SERVICE-predictor" -o 'jsonpath={range .status.conditions[?(@.type=="ReplicaFailure")]}No pod may be made: {.message}{"\n"}{end}' 2>/dev/null || true
  say "Last warnings in $NAMESPACE:"
  in_namespace get events --field-selector type=Warning --sort-by .lastTimestamp -o custom-columns=OBJECT:.involvedObject.name,REASON:.reason,MESSAGE:.message 2>/dev/null | tail -n 8
  return 1
}

finish() {
  local url auth=""
  url=$(in_namespace get "$SERVICE_KIND" "$SERVICE" -o 'jsonpath={.status.url}')
  ! used 'name: atelier-api-keys' || auth=" -H \"Authorization: Bearer \$($CLI -n $NAMESPACE get secret atelier-api-keys -o jsonpath={.data.API_KEYS} | base64 -d)\""
  if used 'enable-auth: "true"' || [ "$SERVICE_KIND" = LLMInferenceService ]; then
    auth=" -H \"Authorization: Bearer \$($CLI -n $NAMESPACE create token default)\""
    [ "$CLI" != oc ] || auth=" -H \"Authorization: Bearer \$($CLI whoami -t)\""
  fi
  say "The authority that signed the address, if your machine does not know it:"
  say "  $CLI -n $NAMESPACE get configmap kube-root-ca.crt -o 'jsonpath={.data.ca\\.crt}' >ca.crt"
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
  say "curl --cacert ca.crt$auth -H 'Content-Type: application/json' $url$path -d '$body'"
}

made() { # a line "Kind name kind.group" for each object that setup.sh made, of the kinds that this cluster serves
  local kinds served
  # An API of the cluster that is down makes this an error, and the list of the others is still there.
  served=$("$CLI" api-resources --namespaced --verbs=delete --no-headers -o name 2>/dev/null || true)
  [ -n "$served" ] || die "the API server does not list its kinds, so nothing was removed: is it up?"
  kinds=$({
    printf 'configmap\nsecret\n' # kustomize generates these
    for file in manifests/setup/*/*.yaml manifests/base/*.yaml manifests/components/*/*.yaml manifests/components/*/*/*.yaml; do
      objects "$file" | awk '{print $4}'
    done
  } | sort -u | while read -r ref; do
    # The kind in the plural: ours ends in s, es or ies.
    grep -xE "${ref%%.*}(s|es)?${ref#"${ref%%.*}"}|${ref%%y.*}ies${ref#"${ref%%.*}"}" <<<"$served" || true
  done | paste -sd,)
  in_namespace get "$kinds" -l "$MADE_BY" -o 'jsonpath={range .items[*]}{.kind}{" "}{.metadata.name}{" "}{.apiVersion}{"\n"}{end}' |
    awk '{group = $3 ~ /\// ? "." substr($3, 1, index($3, "/") - 1) : ""; print $1, $2, tolower($1) group}'
}

uninstall() {
  local kind name ref others list
  # Overlays share the runtime, the account and what watches them.
  others=$(in_namespace get inferenceservice -o 'jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}' | grep -vxF "$SERVICE" || true)
  list=$(made)
  while read -r kind name ref; do
    [ -n "$kind" ] || continue
    if [ "$kind" = PersistentVolumeClaim ] || [ "$kind" = Secret ]; then
      say "  kept $kind/$name"
    elif [ -n "$others" ] && [ "$name" != "$SERVICE" ]; then
      say "  kept $kind/$name, which may serve $(tr '\n' ' ' <<<"$others")"
    elif [ -n "$DRY_RUN" ]; then
      say "  would delete $kind/$name"
    else
      in_namespace delete "$ref" "$name" --ignore-not-found
    fi
  done <<<"$list"
  say "  kept Namespace/$NAMESPACE"
  in_namespace get secrets -o 'jsonpath={range .items[*]}{"  kept Secret/"}{.metadata.name}{"\n"}{end}' 2>/dev/null || true
  say "Volumes and Secrets stay; to remove everything: $CLI delete namespace $NAMESPACE"
}
