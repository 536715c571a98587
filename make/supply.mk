# What an image holds, and what is known to be wrong with it. Both need `make image` to have built
# IMAGE, and the named tool on PATH.
SBOM ?= out/sbom.spdx.json
# The scan fails from this severity on: negligible, low, medium, high, critical.
SCAN_FROM ?= high

.PHONY: sbom image-scan
# The name with its transport: a runtime's local image, not one of the same name in a registry.
image_source = $(if $(filter buildah,$(CONTAINER_RUNTIME)),podman,$(CONTAINER_RUNTIME)):$(IMAGE)

sbom: ## write a list of all packages in the image, as SPDX, into out/sbom.spdx.json (needs syft)
	@command -v syft >/dev/null || { echo "syft is not on PATH: https://github.com/anchore/syft" >&2; exit 1; }
	mkdir -p $(dir $(SBOM))
	syft scan $(image_source) --output spdx-json=$(SBOM)

image-scan: sbom ## look up known vulnerabilities of what the SBOM lists (needs grype)
	@command -v grype >/dev/null || { echo "grype is not on PATH: https://github.com/anchore/grype" >&2; exit 1; }
	grype sbom:$(SBOM) --fail-on $(SCAN_FROM)
