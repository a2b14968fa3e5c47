#!/usr/bin/env bash
# The kubectl commands that people type, one after another, on a cluster of at least two nodes. Prints every command with
# its output and checks what it must say; the first that says something else ends the script with 1.
#
# Usage: KUBECONFIG=target/cluster/kubeconfig tests/cluster/kubectl.sh
set -euo pipefail

KUBECONFIG=$(realpath "${KUBECONFIG:?names the kubeconfig of the cluster}")
export KUBECONFIG
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
namespace=session
cd "$work"
cleanup() {
    local job
    for job in $(jobs -p); do kill "$job" 2>/dev/null || true; done
    kubectl delete namespace "$namespace" --timeout=60s --ignore-not-found >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

output=""
# Runs a command, shows it and what it says, and keeps that; expects the exit code $expected.
expected=0
run() {
    printf '\n$ %s\n' "$*"
    local code=0
    output=$("$@" 2>&1) || code=$?
    printf '%s\n' "$output"
    if [[ $code != "$expected" ]]; then
        echo "FAILED: exit code $code, expected $expected" >&2
        exit 1
    fi
}
k() { run kubectl "$@"; }
# Each argument must stand in the last output.
says() {
    local text
    for text in "$@"; do
        if [[ $output != *"$text"* ]]; then
            echo "FAILED: the output lacks: $text" >&2
            exit 1
        fi
    done
}
is() {
    if [[ $output != "$1" ]]; then
        echo "FAILED: the output is not: $1" >&2
        exit 1
    fi
}
# Waits up to 20 s for a pattern in a file that a command in the background writes.
appears() {
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        grep -q "$1" "$2" && return
        sleep 0.1
    done
    echo "FAILED: $2 never had: $1" >&2
    exit 1
}
# Waits up to 30 s until a command, run as $2 and the rest, prints what $1 matches: what a rollout or a restart leaves
# behind it ends a moment after it (old pods that terminate, a first line of a log). The checks that follow are exact.
settles() {
    local tries pattern=$1 seen=""
    shift
    for ((tries = 0; tries < 150; tries++)); do
        seen=$("$@" 2>&1) || true
        [[ $seen == $pattern ]] && return
        sleep 0.2
    done
    printf 'FAILED: %s never printed %s, but: %s\n' "$*" "$pattern" "$seen" >&2
    exit 1
}
section() { printf '\n## %s\n' "$*"; }

section "version, cluster-info, api-resources, api-versions, explain, auth"
k version
says "Server Version: v1.36"
k cluster-info
says "control plane" "is running at https://"
k api-versions
says "apps/v1" "batch/v1" "networking.k8s.io/v1"
k api-resources
says "deployments" "deploy" "networkpolicies" "netpol" "cronjobs"
k explain deployment.spec.strategy
says "RollingUpdate" "DeploymentStrategy"
k explain pod.spec.containers.livenessProbe --recursive
says "failureThreshold" "httpGet"
k auth whoami
says "kubernetes-admin" "system:masters"
k auth can-i create deployments
is "yes"
expected=1
k auth can-i create pods --as=nobody
is "no"
expected=0

section "create, apply: create, no change, change, prune a field; diff"
k create namespace "$namespace"
says "namespace/$namespace created"
k() { run kubectl -n "$namespace" "$@"; }
cp "$here/web.yaml" .
k apply -f web.yaml
is "deployment.apps/web created"
k apply -f web.yaml
is "deployment.apps/web unchanged"
sed -e '/env:/d' -e '/COLOUR/d' -e 's/tier: front/tier: back/' -e 's/replicas: 2/replicas: 3/' web.yaml >changed.yaml
expected=1
k diff -f changed.yaml
says "-  replicas: 2" "+  replicas: 3" "COLOUR"
expected=0
k apply -f changed.yaml
is "deployment.apps/web configured"
k get deployment web -o 'jsonpath={.metadata.labels.tier} {.spec.replicas} [{.spec.template.spec.containers[0].env}]'
is "back 3 []"
k create configmap settings --from-literal=colour=blue
is "configmap/settings created"
k create -f - <<'YAML'
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: secret}
YAML
is "secret/key created"
k run alone --image=busybox:1.36 --labels=kind=alone -- sleep 3600
is "pod/alone created"
k rollout status deployment/web --timeout=120s
says "successfully rolled out"
k expose deployment web --port=80
is "service/web exposed"
k wait --for=condition=Ready pod/alone --timeout=60s
says "condition met"

section "get"
settles 3 kubectl -n "$namespace" get pods -l app=web -o 'go-template={{len .items}}'
k get pods
says "READY" "STATUS" "RESTARTS" "1/1" "Running"
k get pods -o wide
says "NOMINATED NODE" "READINESS GATES"
k get deployment,service,configmap,secret
says "deployment.apps/web" "service/web" "configmap/settings" "secret/key" "configmap/kube-root-ca.crt"
k get deployment web -o yaml
says "kind: Deployment" "observedGeneration:" "kubectl.kubernetes.io/last-applied-configuration"
k get pods -l app=web -o 'jsonpath={range .items[*]}{.status.phase}{"\n"}{end}'
is $'Running\nRunning\nRunning'
k get pods -l 'app notin (web)' -o name
is "pod/alone"
k get pods --field-selector metadata.name=alone -o name
is "pod/alone"
k get pods -A --field-selector status.phase=Running --no-headers
says "$namespace" "alone"
k get nodes -o wide
says "Ready" "INTERNAL-IP" "CONTAINER-RUNTIME" "containerd://"
kubectl -n "$namespace" get configmaps -w >watched.txt 2>&1 &
watcher=$!
appears settings watched.txt
k create configmap seen --from-literal=a=b
appears seen watched.txt
kill "$watcher"
wait "$watcher" 2>/dev/null || true
run cat watched.txt
says "NAME" "settings" "seen"

section "describe"
node=$(kubectl -n "$namespace" get pod alone -o 'jsonpath={.spec.nodeName}')
k describe node "$node"
says "Capacity:" "Allocatable:" "Non-terminated Pods" "alone" "Lease:"
k describe pod alone
says "Node:" "Containers:" "Conditions:" "Events:" "Scheduled" "Started"
k describe deployment web
says "RollingUpdate" "3 desired" "ScalingReplicaSet"
k describe service web
says "Endpoints:" "ClusterIP" "80/TCP"
k events --for pod/alone
says "Scheduled" "Started"
k get events --field-selector involvedObject.name=alone
says "REASON" "Started"

section "scale, set image, rollout"
k scale deployment web --replicas=4
is "deployment.apps/web scaled"
k rollout status deployment/web --timeout=60s
k set image deployment/web nginx=nginx:1.22.1
is "deployment.apps/web image updated"
k rollout status deployment/web --timeout=120s
says "successfully rolled out"
k rollout history deployment/web
says "REVISION" "1" "2"
k rollout undo deployment/web
says "rolled back"
k rollout status deployment/web --timeout=120s
k get deployment web -o 'jsonpath={.spec.template.spec.containers[0].image}'
is "nginx:1.22"
k rollout restart deployment/web
says "restarted"
k rollout status deployment/web --timeout=120s
k wait --for=condition=Available deployment/web --timeout=60s
says "condition met"

section "label, annotate, edit, patch, replace"
k label deployment web colour=red
is "deployment.apps/web labeled"
k label deployment web colour-
is "deployment.apps/web unlabeled"
k annotate deployment web note=kept
is "deployment.apps/web annotated"
EDITOR="sed -i s/note:.kept/note:\\ edited/" k edit deployment web
says "edited"
k get deployment web -o 'jsonpath={.metadata.annotations.note}'
is "edited"
k patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","env":[{"name":"A","value":"1"}]}]}}}}'
is "deployment.apps/web patched"
k patch deployment web --type=merge -p '{"metadata":{"labels":{"merged":"yes"}}}'
is "deployment.apps/web patched"
k patch deployment web --type=json -p '[{"op":"add","path":"/metadata/labels/jsoned","value":"yes"}]'
is "deployment.apps/web patched"
k get deployment web -o 'jsonpath={.metadata.labels.merged} {.metadata.labels.jsoned} {.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].name}'
is "yes yes nginx:1.22 A"
kubectl -n "$namespace" get configmap settings -o yaml | sed 's/colour: blue/colour: green/' >settings.yaml
k replace -f settings.yaml
is "configmap/settings replaced"
k get configmap settings -o 'jsonpath={.data.colour}'
is "green"

section "logs, exec, cp, port-forward"
cat >talker.yaml <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: talker
    image: multitool:1
    command: [sh, -c, 'for i in 1 2 3; do echo line $i; done; if [ ! -e /data/again ]; then touch /data/again; exit 3; fi; exec multitool serve']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
YAML
k apply -f talker.yaml
k wait --for='jsonpath={.status.containerStatuses[0].restartCount}=1' pod/talker --timeout=60s
k wait --for=condition=Ready pod/talker --timeout=60s
k get pod talker
says "1/1" "Running" "1 ("
settles '*serving as talker*' kubectl -n "$namespace" logs talker
k logs talker
says "line 1" "line 3" "serving as talker"
k logs talker --tail=1
is "serving as talker"
k logs talker -p
says "line 3"
expected=124
run timeout 5 kubectl -n "$namespace" logs -f talker
says "serving as talker"
expected=0
k exec talker -- sh -c 'echo from inside'
is "from inside"
printf 'twelve bytes' >twelve
k exec -i talker -- wc -c <twelve
says "12"
run script -qec "kubectl -n $namespace exec -it talker -- sh -c 'test -t 0 && test -t 1 && echo a terminal'" /dev/null
says "a terminal"
expected=7
k exec talker -- sh -c 'exit 7'
says "exit code 7"
expected=0
head -c 300000 /dev/urandom >sent
k cp sent talker:/tmp/there
k cp talker:/tmp/there back
run cmp sent back
kubectl -n "$namespace" port-forward pod/talker :8080 >forwarded.txt 2>&1 &
forward=$!
appears '^Forwarding from 127' forwarded.txt
port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' forwarded.txt)
run curl -sS --max-time 10 "http://127.0.0.1:$port/"
says '"pod":"talker"'
kill "$forward"
wait "$forward" 2>/dev/null || true
run sed 's/:[0-9]* ->/:PORT ->/' forwarded.txt
says "Forwarding from 127.0.0.1:PORT -> 8080"

section "cordon, drain, uncordon"
node=$(kubectl -n "$namespace" get pod -l app=web -o 'jsonpath={.items[0].spec.nodeName}')
k cordon "$node"
is "node/$node cordoned"
k get node "$node"
says "SchedulingDisabled"
k drain "$node" --ignore-daemonsets --delete-emptydir-data --force --timeout=90s
says "node/$node drained"
k get pods -l app=web -A --field-selector "spec.nodeName=$node"
says "No resources found"
k uncordon "$node"
is "node/$node uncordoned"
k rollout status deployment/web --timeout=60s

section "delete: by file, by label, at once"
k delete -f changed.yaml
says 'deployment.apps "web" deleted'
k run labelled --image=busybox:1.36 --labels=kind=labelled -- sleep 3600
k delete pod -l kind=labelled --grace-period=1
says 'pod "labelled" deleted'
k run stubborn --image=busybox:1.36 -- sleep 3600
k wait --for=condition=Ready pod/stubborn --timeout=60s
k delete pod stubborn --grace-period=0 --force
says 'pod "stubborn" force deleted'
k get pods -l app=web -o name
k delete service web
k delete namespace "$namespace"
says "deleted"

printf '\nAll commands behaved.\n'
