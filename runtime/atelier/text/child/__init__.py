"""A language model served by an engine in a process of its own: vLLM, SGLang, llama.cpp."""
