# Tests of what only CUDA does. They run on a bare machine too that has torch, transformers, pytest and the wheels of
# tests/gpu/requirements.txt: PYTHON=python3 make test-gpu
.PHONY: test-gpu
test-gpu: ## every test of a branch that only CUDA takes; skipped with a reason where there is no GPU
	PYTHONPATH=runtime:pipelines:.:$$PYTHONPATH $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -q -p no:cacheprovider tests/gpu
