# Gemma 3 270M through every engine. A file of its own, since a change of engines.mk installs every engine anew.
.PHONY: test-engines
test-engines: gemma3 engine-vllm-cpu engine-llamacpp ## Gemma 3 270M through every engine on the CPU
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/text/test_gemma3.py \
	  tests/text/test_gemma3_vllm.py tests/text/test_llamacpp.py

# Asked for together, the tests wait for llama.cpp, as they do for vLLM.
unit: $(filter engine-llamacpp,$(MAKECMDGOALS))
