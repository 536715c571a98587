# Clients that people use, for tests/clients. Those of Python have an environment of their own, since their pins are not
# ours; those of npm lie where programs in tests/clients find them.
CLIENTS := .engines/clients
NPM_CLIENTS := tests/clients/node_modules
.PHONY: clients
clients: $(CLIENTS)/.installed $(NPM_CLIENTS)/.installed ## LiteLLM, LangChain, the AI SDK and others, for tests

# The tests ask the servers with them.
unit: clients

$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/constraints.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/$(pip_upgrade)
	$(CLIENTS)/bin/$(pip_install) --constraint tests/clients/constraints.txt --requirement tests/clients/requirements.txt
	touch $@

# Without npm there is nothing to install, and the tests that need it are skipped.
$(NPM_CLIENTS)/.installed: tests/clients/package.json
	mkdir -p $(NPM_CLIENTS)
	if command -v npm >/dev/null; then \
	  npm install --prefix tests/clients --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error; \
	fi
	touch $@
