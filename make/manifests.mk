# Manifests: the flat files in manifests/templates, and a look at what an overlay renders to.
OVERLAY ?= dev

.PHONY: templates templates-check render
templates: install ## write manifests/templates from the overlays
	$(BIN)/python manifests/make_templates.py

templates-check: install ## fail if manifests/templates is not current
	$(BIN)/python manifests/make_templates.py --check

render: ## print what OVERLAY renders to
	kubectl kustomize manifests/overlays/$(OVERLAY)

.PHONY: sizing
sizing: install ## compute the sizing table of docs/deploying.md
	PYTHONPATH=runtime:. $(BIN)/python docs/sizing.py
