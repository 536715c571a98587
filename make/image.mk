# The container image: make image TARGET=cpu, make push REGISTRY=..., make run-image.
CONTAINER_RUNTIME ?= podman
REGISTRY ?= quay.io/atelier
TARGET ?= runtime
# The git tag, else the commit: an image says what it was made of.
IMAGE_VERSION ?= $(shell git describe --tags --exact-match 2>/dev/null || git rev-parse --short=12 HEAD)
IMAGE_SUFFIX_runtime =
IMAGE_SUFFIX_engine-vllm = -vllm
IMAGE ?= $(REGISTRY)/atelier:$(IMAGE_VERSION)$(if $(filter undefined,$(origin IMAGE_SUFFIX_$(TARGET))),-$(TARGET),$(IMAGE_SUFFIX_$(TARGET)))
# A file with a Hub token for the targets prewarmed and modelcar; it reaches the build as a secret.
HF_TOKEN_FILE ?=
BUILD_ARGS ?=

build_command = $(if $(filter buildah,$(CONTAINER_RUNTIME)),buildah bud,$(CONTAINER_RUNTIME) build)
# Docker's image format keeps the HEALTHCHECK, which the OCI format has no place for.
format = $(if $(filter docker,$(CONTAINER_RUNTIME)),,--format docker)

.PHONY: image push run-image
image: ## build the image: TARGET=runtime|cpu|engine-vllm|studio|prewarmed|modelcar, MODEL_ID=... for the last two
	$(build_command) $(format) --file Containerfile --target $(TARGET) --tag $(IMAGE) \
	  --build-arg VERSION=$(IMAGE_VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) \
	  $(if $(MODEL_ID),--build-arg MODEL_ID=$(MODEL_ID)) $(addprefix --build-arg ,$(BUILD_ARGS)) \
	  $(if $(HF_TOKEN_FILE),--secret id=hf_token$(comma)src=$(HF_TOKEN_FILE)) .
	@echo $(IMAGE)

push: ## push the image that `make image` built
	$(CONTAINER_RUNTIME) push $(IMAGE)

run-image: ## run it as OpenShift would: arbitrary UID, group 0, no capabilities, read-only root
	$(if $(filter buildah,$(CONTAINER_RUNTIME)),podman,$(CONTAINER_RUNTIME)) run --rm --publish 8080:8080 --publish 8081:8081 \
	  --user 1000680000:0 --cap-drop ALL --security-opt no-new-privileges --read-only \
	  --tmpfs /tmp:rw,mode=1777 --tmpfs /cache:rw,mode=1777 --env HOME=/cache \
	  $(if $(MODEL_ID),--env MODEL_ID=$(MODEL_ID)) $(RUN_ARGS) $(IMAGE)

comma := ,
